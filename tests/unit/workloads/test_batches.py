from __future__ import annotations

from dataclasses import dataclass, field
from threading import get_ident

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.unit.workloads.small_task import settings
from typing_extensions import override

from cloister.errors import StorageError
from cloister.federation.sampling import Sampler
from cloister.storage.records import Batch, DataSource, Records, SplitName
from cloister.workloads.batches import EVALUATION_BATCH, Examples


@dataclass(slots=True)
class Watched(Records):
    """Records that remember which were read, and by which threads."""

    count: int
    reads: list[list[int]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    @override
    def __len__(self) -> int:
        return self.count

    @override
    def read(self, indices: NDArray[np.int64]) -> Batch:
        self.reads.append(indices.tolist())
        self.threads.add(get_ident())
        return {"index": indices.copy()}


@dataclass(slots=True)
class WatchedSource(DataSource):
    train: Watched
    held_out: Watched

    @override
    def split(self, name: SplitName) -> Watched:
        return self.train if name == "train" else self.held_out


@dataclass(slots=True)
class Indices:
    """Batches that are the records' own indices, and some noise."""

    records: Records

    def __len__(self) -> int:
        return len(self.records)

    def batch(
        self, indices: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[list[int], int]:
        record = self.records.read(indices)
        return record["index"].tolist(), int(generator.integers(2**32))


def examples(
    *, train: int = 20, held_out: int = 9, batch_size: int = 8
) -> tuple[Examples[tuple[list[int], int]], WatchedSource]:
    source = WatchedSource(Watched(train), Watched(held_out))
    made = Examples(
        source,
        train=lambda source: Indices(source.split("train")),
        held_out=lambda source: Indices(source.split("held-out")),
        settings=settings(batch_size=batch_size),
    )
    return made, source


@given(
    train=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    numbers=st.lists(st.integers(1, 30), min_size=1, max_size=6),
)
def test_a_steps_batch_is_the_samplers_whatever_was_read_before(
    train: int, batch_size: int, numbers: list[int]
) -> None:
    made, _ = examples(train=train, batch_size=batch_size)
    sampler = Sampler(examples=train, batch_size=batch_size, seed=7, party="alice")
    for number in numbers:
        draw = made.draw(number)
        generator = sampler.augmentation(number)
        assert draw.seed == generator.integers(2**63)
        noise = int(generator.integers(2**32))
        assert made.train_batch(draw) == (sampler.indices(number).tolist(), noise)


def test_following_steps_read_each_batch_once_and_in_one_other_thread() -> None:
    made, source = examples()
    sampler = Sampler(examples=20, batch_size=8, seed=7, party="alice")
    for number in range(1, 6):
        made.train_batch(made.draw(number))
    # Waits for what was begun: the reading thread takes one thing after the other.
    made.held_out_batch(next(made.held_out_indices()))
    wanted = [sampler.indices(number).tolist() for number in range(1, 7)]
    assert source.train.reads == wanted
    assert len(source.train.threads) == 1
    assert get_ident() not in source.train.threads


def test_held_out_examples_are_read_in_order_and_once() -> None:
    count = 2 * EVALUATION_BATCH + 3
    made, source = examples(held_out=count)
    pieces = [made.held_out_batch(i)[0] for i in made.held_out_indices()]
    assert [len(piece) for piece in pieces] == [EVALUATION_BATCH, EVALUATION_BATCH, 3]
    assert [index for piece in pieces for index in piece] == list(range(count))
    assert source.held_out.reads == pieces


def test_held_out_batches_are_always_the_same() -> None:
    made, _ = examples()
    first, again = (
        [made.held_out_batch(i) for i in made.held_out_indices()] for _ in range(2)
    )
    assert first == again


def test_without_training_examples_there_is_nothing_to_learn() -> None:
    with pytest.raises(StorageError) as caught:
        examples(train=0)
    assert caught.value.code == "data-empty"


def test_held_out_examples_may_be_missing() -> None:
    made, _ = examples(held_out=0)
    assert made.held_out_count == 0
    assert list(made.held_out_indices()) == []
