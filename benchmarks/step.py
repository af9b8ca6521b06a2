"""Seconds a training step: server and two workers against a plain PyTorch loop.

Both train the demo's network on the demo's digits with the same total batch on the same
cores, in turns of a few steps, so that a noisy machine disturbs both: while the loop
runs, the processes of the federation are stopped. Federated steps are timed by the
server, from one completed round to the next; those in which it was stopped do not
count. The loop has as many threads as are faster, one or all: where others use the
cores too, threads that wait for each other are slow.
"""

from __future__ import annotations

import argparse
import os
import signal
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
# The round that was under way, and one that the launcher had not read of yet.
STOPPED_ROUNDS = 2
REACH = 1.1


class PlainLoop:
    """An ordinary training loop.

    Args:
        data: A directory of records.

    Attributes:
        threads: How many it uses; what was fastest at the beginning.
    """

    def __init__(self, data: Path) -> None:
        self._task = ImageClassification(image_size=8, crop_padding=1, flip=False)
        self._batches = self._task.train_data(open_raw_shard(data, self._task.schema()))
        torch.manual_seed(7)
        self._model = self._task.model().train()
        self._optimizer = torch.optim.SGD(
            self._model.parameters(),
            lr=0.01,
            momentum=0.9,
            weight_decay=DIGITS.weight_decay,
        )
        self._generator = np.random.Generator(np.random.PCG64(7))
        seconds = {}
        for threads in (1, len(os.sched_getaffinity(0))):
            torch.set_num_threads(threads)
            self.step()  # threads are made
            took = [self.step() for _ in range(WARMUP_STEPS)]
            seconds[threads] = statistics.median(took)
        self.threads = min(seconds, key=seconds.__getitem__)
        torch.set_num_threads(self.threads)

    def step(self) -> float:
        """Does one step; returns the seconds it took."""
        began = time.perf_counter()
        indices = self._generator.integers(
            0, len(self._batches), size=len(WORKERS) * DIGITS.batch_size
        )
        batch = self._batches.batch(indices, self._generator)
        loss = self._task.loss(self._model, batch)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        return time.perf_counter() - began


class Turns:
    """Takes the server's events; after some steps it is the plain loop's turn.

    Args:
        plain: The loop.
        steps: In a turn.

    Attributes:
        plain: The loop.
        ours: Seconds of each federated step, by turn.
        theirs: And of each step of the loop.
    """

    def __init__(self, plain: PlainLoop, steps: int) -> None:
        self.plain = plain
        self._steps = steps
        self._skip = WARMUP_STEPS
        self._turn: list[float] = []
        self.ours: list[list[float]] = []
        self.theirs: list[list[float]] = []

    def __call__(self, event: dict[str, object]) -> None:
        """Takes an event."""
        if event.get("event") != "round" or event.get("party") != "aggregator":
            return
        if self._skip:
            self._skip -= 1
            return
        self._turn.append(msgspec.convert(event["seconds"], float))
        if len(self._turn) < self._steps:
            return
        self.ours.append(self._turn)
        self._turn, self._skip = [], STOPPED_ROUNDS
        stopped = children(os.getpid())
        try:
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            self.theirs.append([self.plain.step() for _ in range(self._steps)])
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    def ratio(self) -> float:
        """Returns ours to theirs: the median over all turns."""
        return statistics.median(
            statistics.median(ours) / statistics.median(theirs)
            for ours, theirs in zip(self.ours, self.theirs, strict=True)
        )


def children(pid: int) -> list[int]:
    """Returns the processes that a process started and that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if int(parent) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


def measure(directory: Path, *, steps: int, turns: int) -> Turns:
    """Runs the federation and the loop in turns."""
    rounds = WARMUP_STEPS + turns * (steps + STOPPED_ROUNDS)
    plan_path = write_deployment(
        order_for(directory, data=None, workers=WORKERS, rounds=rounds, tee=None),
        at=utc_now(),
        tell=lambda _: None,
    )
    plain = PlainLoop(plan_path.parent / "parties" / WORKERS[0] / "data")
    taken = Turns(plain, steps)
    plan = sign_all_here(plan_path, at=utc_now()).plan
    run_plan(plan, plan_path, reporter=JsonReporter(taken))
    return taken


def main() -> None:
    """Measures both and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=8, help="in a turn")
    parser.add_argument("--turns", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "deployment"
        taken = measure(place, steps=arguments.steps, turns=arguments.turns)
    step = statistics.median(s for turn in taken.ours for s in turn)
    loop = statistics.median(s for turn in taken.theirs for s in turn)
    ratio = taken.ratio()
    report(
        "A training step of ResNet-56 on digits, total batch 128",
        [
            Figure(name="server and two workers, attested", value=step, unit="s"),
            Figure(
                name=f"plain loop, threads: {taken.plain.threads}", value=loop, unit="s"
            ),
            Figure(
                name="ratio, median of all turns",
                value=ratio,
                unit="times",
                reach=f"at most {REACH}",
                ok=ratio <= REACH,
            ),
        ],
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
