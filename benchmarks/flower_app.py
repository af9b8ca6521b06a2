"""The peer's side of the comparison: a small app of Flower, written to a directory.

Its server averages; its clients add a hundredth to every parameter. Written as text,
because it runs in the peer's own virtual environment.
"""

from __future__ import annotations

from pathlib import Path


def write_app(directory: Path) -> None:
    """Writes the app."""
    package = directory / "rounds"
    package.mkdir(parents=True)
    (directory / "pyproject.toml").write_text(_PROJECT)
    (package / "__init__.py").write_text("")
    (package / "server.py").write_text(_SERVER)
    (package / "client.py").write_text(_CLIENT)


_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "rounds"
version = "1.0.0"
description = "Rounds that compute nothing"
license = "Apache-2.0"
dependencies = ["flwr", "numpy"]

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "rounds.server:app"
clientapp = "rounds.client:app"

[tool.flwr.app.config]
parameters = 1
tensors = 1
rounds = 1
result = ""
"""

_SERVER = '''\
"""Averages; writes the seconds of every round, and the most memory it took."""

import json
import os
import time

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Clocked(FedAvg):
    """Notes when each round begins and ends."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seconds = []

    def configure_train(self, *arguments, **options):
        self.began = time.perf_counter()
        return super().configure_train(*arguments, **options)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        if len(replies) != 2 or any(reply.has_error() for reply in replies):
            raise RuntimeError(f"round {server_round} has not two good replies")
        aggregate = super().aggregate_train(server_round, replies)
        self.seconds.append(time.perf_counter() - self.began)
        return aggregate


@app.main()
def main(grid, context):
    config = context.run_config
    size = int(config["parameters"]) // int(config["tensors"])
    generator = np.random.default_rng(7)
    first = [
        generator.standard_normal(size, np.float32)
        for _ in range(int(config["tensors"]))
    ]
    strategy = Clocked(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=2,
        min_available_nodes=2,
    )
    rounds = int(config["rounds"])
    result = strategy.start(
        grid=grid, initial_arrays=ArrayRecord(first), num_rounds=rounds
    )
    last = result.arrays.to_numpy_ndarrays()
    if not np.allclose(last[-1], first[-1] + 0.01 * rounds, atol=1e-4):
        raise RuntimeError("the clients' updates are not in the model")
    with open("/proc/self/status") as file:
        [peak] = [line.split()[1] for line in file if line.startswith("VmHWM")]
    path = config["result"]
    with open(path + ".part", "w") as file:
        json.dump({"seconds": strategy.seconds, "peak": int(peak) * 1024}, file)
    os.rename(path + ".part", path)
'''

_CLIENT = '''\
"""Adds a hundredth to every parameter."""

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg, context):
    arrays = msg.content["arrays"].to_numpy_ndarrays()
    content = {
        "arrays": ArrayRecord([array + np.float32(0.01) for array in arrays]),
        "metrics": MetricRecord({"num-examples": 1}),
    }
    return Message(content=RecordDict(content), reply_to=msg)
'''
