"""Seconds a training step: server and two workers against a plain PyTorch loop.

Both train the demo's network on the demo's digits with the same total batch on the same
cores, one after the other and again, so that a noisy machine disturbs both. Federated
steps are timed by the server, from one completed round to the next.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import torch

from cloister.cli.commands.init import order_for
from cloister.cli.deployment import write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.progress import JsonReporter
from cloister.cli.recipes import DIGITS
from cloister.cli.running import run_plan
from cloister.cli.signing import sign_all_here
from cloister.storage.raw_shard import open_raw_shard
from cloister.workloads.image_classification import ImageClassification
from reporting import Figure, report

WORKERS = ("alice", "bob")
WARMUP_STEPS = 5
REACH = 1.1


def federated(directory: Path, rounds: int) -> tuple[list[float], Path]:
    """Returns the seconds of each step and where the workers' data lies."""
    plan_path = write_deployment(
        order_for(directory, data=None, workers=WORKERS, rounds=rounds, tee=None),
        at=utc_now(),
        tell=lambda _: None,
    )
    seconds: list[float] = []

    def take(event: dict[str, object]) -> None:
        if event.get("event") == "round" and event.get("party") == "aggregator":
            seconds.append(msgspec.convert(event["seconds"], float))

    plan = sign_all_here(plan_path, at=utc_now()).plan
    run_plan(plan, plan_path, reporter=JsonReporter(take))
    return seconds[WARMUP_STEPS:], plan_path.parent / "parties" / WORKERS[0] / "data"


def plain(data: Path, steps: int) -> list[float]:
    """Returns the seconds of each step of an ordinary loop on all cores."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    task = ImageClassification(image_size=8, crop_padding=1, flip=False)
    batches = task.train_data(open_raw_shard(data, task.schema()))
    torch.manual_seed(7)
    model = task.model().train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=DIGITS.weight_decay
    )
    generator = np.random.Generator(np.random.PCG64(7))
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        indices = generator.integers(
            0, len(batches), size=len(WORKERS) * DIGITS.batch_size
        )
        loss = task.loss(model, batches.batch(indices, generator))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return seconds[WARMUP_STEPS:]


def main() -> None:
    """Measures both and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            steps, data = federated(Path(scratch) / "deployment", arguments.steps)
            ours += steps
            theirs += plain(data, arguments.steps)
    step, loop = statistics.median(ours), statistics.median(theirs)
    report(
        "A training step of ResNet-56 on digits, total batch 128",
        [
            Figure(name="server and two workers, attested", value=step, unit="s"),
            Figure(name="plain single-process loop", value=loop, unit="s"),
            Figure(
                name="ratio",
                value=step / loop,
                unit="times",
                reach=f"at most {REACH}",
                ok=step / loop <= REACH,
            ),
        ],
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
