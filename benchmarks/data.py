"""What sealed data costs: a training step beside one on plain arrays, and MB/s.

One learner on sealed records and one on the same records in memory train Plinius'
network in one process, in turns of a few steps, so that a noisy machine disturbs both;
whose turn is first changes each time. Both draw the same batches. The images are noise:
what a step costs does not depend on them. Processor time of all threads is told beside
the time on the clock: of that, the machine's other work takes nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from typing_extensions import override

from cloister.cli.data_sealing import PartySigner
from cloister.federation.layout import ModelBuffer
from cloister.federation.task import Learner, LearnerSettings
from cloister.storage.data_sealing import seal_data
from cloister.storage.keys import new_key
from cloister.storage.record_stream import CHUNK_RECORDS, Chunk
from cloister.storage.records import Batch, DataSource, Records, Schema, SplitName
from cloister.storage.sealed_data import read_sealed_data
from cloister.storage.sealed_data_set import SealedDataSet
from cloister.workloads.darknet_classification import DarknetClassification
from cloister.workloads.precision import has_fast_bfloat16
from reporting import Figure, report

REACH: Final = 1.05  # Plinius: 1.2 between encrypted and plain data
BATCH_SIZE: Final = 128
WARMUP_STEPS: Final = 2
RECORDS: Final = 8000  # to train on, as in Plinius' trial; a quarter more held out
READ_SECONDS: Final = 1.0


@dataclass(frozen=True)
class PlainRecords(Records):
    """The records of one split in memory."""

    columns: Batch

    @override
    def __len__(self) -> int:
        return len(self.columns["label"])

    @override
    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Returns copies of the records at `indices`."""
        return {name: column[indices] for name, column in self.columns.items()}


@dataclass(frozen=True)
class PlainSource(DataSource):
    """Records in memory, which can also be sealed."""

    schema: Schema
    splits: dict[SplitName, PlainRecords]
    format: str = "arrays"

    @property
    def total(self) -> int:
        """Records of both splits."""
        return sum(len(records) for records in self.splits.values())

    @override
    def split(self, name: SplitName) -> PlainRecords:
        """Returns one split."""
        return self.splits[name]

    def chunks(self) -> Iterator[Chunk]:
        """Yields all records, to be sealed."""
        for name, records in self.splits.items():
            for start in range(0, len(records), CHUNK_RECORDS):
                piece = slice(start, start + CHUNK_RECORDS)
                columns = {n: c[piece] for n, c in records.columns.items()}
                yield Chunk(split=name, columns=columns)


def noise(schema: Schema) -> PlainSource:
    """Returns records of labels and images."""
    generator = np.random.default_rng(7)

    def records(count: int) -> PlainRecords:
        return PlainRecords(
            {
                f.name: generator.integers(
                    0, f.below or 256, (count, *f.shape), np.uint8
                )
                for f in schema.fields
            }
        )

    splits: dict[SplitName, PlainRecords] = {
        "train": records(RECORDS),
        "held-out": records(RECORDS // 4),
    }
    return PlainSource(schema, splits)


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Megabytes of records a second."""

    sealing: float
    in_order: float
    shuffled: float
    batch_seconds: float


def seal(plain: PlainSource, path: Path) -> tuple[SealedDataSet, Throughput]:
    """Returns the sealed records, and how fast they are written and read."""
    key = new_key()
    signer = PartySigner(Ed25519PrivateKey.generate())
    megabytes = plain.total * plain.schema.record_bytes / 1e6
    began = time.perf_counter()
    seal_data(plain, path=path, key=key, signer=signer)
    sealing = megabytes / (time.perf_counter() - began)
    source = read_sealed_data(path).open(key, schema=plain.schema)
    began = time.perf_counter()
    source.verify()
    in_order = megabytes / (time.perf_counter() - began)
    train = source.split("train")
    generator = np.random.default_rng(8)
    took: list[float] = []
    while sum(took) < READ_SECONDS:
        indices = generator.integers(0, len(train), BATCH_SIZE)
        began = time.perf_counter()
        train.read(indices)
        took.append(time.perf_counter() - began)
    batch = statistics.median(took)
    shuffled = BATCH_SIZE * plain.schema.record_bytes / 1e6 / batch
    return source, Throughput(
        sealing=sealing, in_order=in_order, shuffled=shuffled, batch_seconds=batch
    )


class Runner:
    """Takes steps, one after another.

    Args:
        learner: On one source.
        model: What every step begins with.

    Attributes:
        turns: Seconds of each step, by turn.
        processor_seconds: Of all threads, by turn.
    """

    def __init__(self, learner: Learner, model: ModelBuffer) -> None:
        self._learner = learner
        self._learner.load(model)
        self._out = ModelBuffer(model.layout)
        self._round = 0
        self.turns: list[list[float]] = []
        self.processor_seconds: list[float] = []
        for _ in range(WARMUP_STEPS):
            self._step()

    def turn(self, steps: int) -> None:
        """Takes some steps."""
        began = time.process_time()
        self.turns.append([self._step() for _ in range(steps)])
        self.processor_seconds.append(time.process_time() - began)

    def _step(self) -> float:
        self._round += 1
        began = time.perf_counter()
        self._learner.step(self._round, self._out)
        return time.perf_counter() - began

    def median(self) -> float:
        """Returns the seconds of a step."""
        return statistics.median(s for turn in self.turns for s in turn)


def compare(
    task: DarknetClassification,
    sources: tuple[DataSource, DataSource],
    settings: LearnerSettings,
    *,
    turns: int,
    steps: int,
) -> tuple[Runner, Runner]:
    """Takes steps on both sources, in turns."""
    model = task.initial_model(seed=settings.seed)
    first, second = (Runner(task.learner(s, settings), model) for s in sources)
    for turn in range(turns):
        order = (first, second) if turn % 2 else (second, first)
        for runner in order:
            runner.turn(steps)
    return first, second


def ratio(plain: Runner, sealed: Runner) -> float:
    """Returns sealed to plain: the median over all turns."""
    return statistics.median(
        statistics.median(ours) / statistics.median(theirs)
        for ours, theirs in zip(sealed.turns, plain.turns, strict=True)
    )


def processor_ratio(plain: Runner, sealed: Runner) -> float:
    """Returns sealed to plain in processor time: the median over all turns."""
    return statistics.median(
        ours / theirs
        for ours, theirs in zip(
            sealed.processor_seconds, plain.processor_seconds, strict=True
        )
    )


def figures(plain: Runner, sealed: Runner, speed: Throughput) -> list[Figure]:
    """Returns what was measured."""
    times = ratio(plain, sealed)
    opening = speed.batch_seconds * 1000
    return [
        Figure(name="step on plain arrays", value=plain.median(), unit="s"),
        Figure(name="step on sealed records", value=sealed.median(), unit="s"),
        Figure(
            name="ratio, median of all turns",
            value=times,
            unit="times",
            reach=f"at most {REACH}",
            ok=times <= REACH,
        ),
        Figure(
            name="ratio of processor time",
            value=processor_ratio(plain, sealed),
            unit="times",
        ),
        Figure(name=f"opening a batch of {BATCH_SIZE}", value=opening, unit="ms"),
        Figure(name="sealing, to the disk", value=speed.sealing, unit="MB/s"),
        Figure(name="opening, in order", value=speed.in_order, unit="MB/s"),
        Figure(name="opening, shuffled batches", value=speed.shuffled, unit="MB/s"),
    ]


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of PyTorch"
    )
    arguments = parser.parse_args()
    task = DarknetClassification()
    settings = LearnerSettings(
        party="alice",
        batch_size=BATCH_SIZE,
        seed=7,
        threads=arguments.threads,
        precision="bfloat16" if has_fast_bfloat16() else "float32",
    )
    plain = noise(task.schema())
    with tempfile.TemporaryDirectory() as scratch:
        sealed, speed = seal(plain, Path(scratch) / "data.sealed")
        runners = compare(
            task,
            (plain, sealed),
            settings,
            turns=arguments.turns,
            steps=arguments.steps,
        )
    report(
        "Plinius' network, batches of"
        f" {BATCH_SIZE}, {settings.precision}, threads: {settings.threads}",
        figures(*runners, speed),
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
