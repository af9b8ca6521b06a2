"""A federation and a plain training loop on the same cores, in turns.

A noisy machine disturbs both: while the loop runs, the processes of the federation are
stopped. Federated steps are timed by the server, from one completed round to the next;
those in which it was stopped do not count.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from cloister.federation.task import Precision
from cloister.storage.record_stream import RecordStream
from cloister.storage.records import Batch, SplitName
from cloister.workloads.tensor_batches import BatchT
from cloister.workloads.torch import TorchTask

WARMUP_STEPS = 5
# The round that was under way, and one that the launcher had not read of yet.
STOPPED_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class ArrayRecords:
    """The records of one split, plain arrays in memory."""

    columns: Batch

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Returns the records at `indices`."""
        return {name: column[indices] for name, column in self.columns.items()}


@dataclass(frozen=True, slots=True)
class ArraySource:
    """A data set in plain arrays: what a loop without a federation would have."""

    splits: Mapping[SplitName, ArrayRecords]

    def split(self, name: SplitName) -> ArrayRecords:
        """Returns the records of one split."""
        return self.splits[name]


def in_memory(*streams: RecordStream) -> ArraySource:
    """Returns all records of some streams."""
    found: dict[SplitName, list[Batch]] = defaultdict(list)
    for stream in streams:
        for chunk in stream.chunks():
            found[chunk.split].append(chunk.columns)
    return ArraySource(
        {
            split: ArrayRecords(
                {
                    name: np.concatenate([columns[name] for columns in parts])
                    for name in parts[0]
                }
            )
            for split, parts in found.items()
        }
    )


class PlainLoop(Generic[BatchT]):
    """An ordinary training loop.

    Args:
        task: Model, loss and batches.
        source: Its data.
        batch_size: Examples in a step.
        precision: Of the forward and backward pass.

    Attributes:
        threads: How many it uses; what was fastest at the beginning: one, or all. Where
            others use the cores too, threads that wait for each other are slow.
    """

    def __init__(
        self,
        task: TorchTask[BatchT],
        source: ArraySource,
        *,
        batch_size: int,
        precision: Precision,
    ) -> None:
        self._task = task
        self._batches = task.train_data(source)
        self._batch_size = batch_size
        torch.manual_seed(7)
        self._model = task.model().train()
        self._optimizer = torch.optim.SGD(
            self._model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4
        )
        self._autocast = torch.autocast(
            "cpu", torch.bfloat16, enabled=precision == "bfloat16"
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
        indices = self._generator.integers(0, len(self._batches), size=self._batch_size)
        batch = self._batches.batch(indices, self._generator)
        with self._autocast:
            loss = self._task.loss(self._model, batch)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        return time.perf_counter() - began


class Turns(Generic[BatchT]):
    """Takes the server's events; after some steps it is the plain loop's turn.

    Args:
        plain: The loop.
        steps: In a turn.

    Attributes:
        plain: The loop.
        ours: Seconds of each federated step, by turn.
        theirs: And of each step of the loop.
    """

    def __init__(self, plain: PlainLoop[BatchT], steps: int) -> None:
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

    @property
    def step_seconds(self) -> float:
        """Of a federated step, the median."""
        return statistics.median(s for turn in self.ours for s in turn)

    @property
    def loop_seconds(self) -> float:
        """Of a step of the loop, the median."""
        return statistics.median(s for turn in self.theirs for s in turn)

    def ratio(self) -> float:
        """Returns ours to theirs: the median over all turns."""
        return statistics.median(
            statistics.median(ours) / statistics.median(theirs)
            for ours, theirs in zip(self.ours, self.theirs, strict=True)
        )


def rounds_for(*, steps: int, turns: int) -> int:
    """Returns how many rounds a federation needs for so many turns."""
    return WARMUP_STEPS + turns * (steps + STOPPED_ROUNDS)


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
