from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.read_streams import counts, read_stream
from typing_extensions import override

from cloister.errors import ConfigError, StorageError
from cloister.storage.formats.held_out import SourceStream, with_held_out
from cloister.storage.record_stream import Chunk
from cloister.storage.records import Field, Schema, SplitName


@dataclass
class NumberedSource(SourceStream):
    """Records 0, 1, 2, ... in chunks of the sizes given."""

    chunk_sizes: list[int]
    test_records: int | None = None
    knows_total: bool = True
    reads: int = field(default=0)

    @property
    @override
    def format(self) -> str:
        return "numbers"

    @property
    @override
    def schema(self) -> Schema:
        return Schema(fields=(Field(name="number", dtype="int64"),))

    @property
    @override
    def total(self) -> int | None:
        if not self.knows_total:
            return None
        return sum(self.chunk_sizes) + (self.test_records or 0)

    @property
    @override
    def tells_splits(self) -> bool:
        return self.test_records is not None

    @override
    def chunks(self) -> Iterator[Chunk]:
        self.reads += 1
        first = 0
        for size in self.chunk_sizes:
            yield self._chunk("train", first, size)
            first += size
        if self.test_records:
            yield self._chunk("held-out", first, self.test_records)

    def _chunk(self, split: SplitName, first: int, size: int) -> Chunk:
        return Chunk(split=split, columns={"number": np.arange(first, first + size)})


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    held_out=st.integers(0, 30),
    knows_total=st.booleans(),
)
def test_the_last_records_are_held_out_and_none_is_lost(
    sizes: list[int], held_out: int, *, knows_total: bool
) -> None:
    total = sum(sizes)
    held_out %= total
    stream = with_held_out(NumberedSource(sizes, knows_total=knows_total), held_out)
    read = read_stream(stream)
    numbers = [read[split]["number"].tolist() for split in read]
    train = total - held_out
    assert numbers[0] == list(range(train))
    assert numbers[1:] == ([list(range(train, total))] if held_out else [])
    assert stream.total == (total if knows_total else None)


def test_a_source_that_knows_its_length_is_read_once() -> None:
    source = NumberedSource([3, 3])
    counts(with_held_out(source, 2))
    assert source.reads == 1


def test_what_the_source_says_of_its_splits_is_taken() -> None:
    source = NumberedSource([3], test_records=2)
    assert counts(with_held_out(source, None)) == {"train": 3, "held-out": 2}


@pytest.mark.parametrize("test_records", [None, 2])
def test_all_records_can_be_held_out(test_records: int | None) -> None:
    stream = with_held_out(NumberedSource([3], test_records=test_records), "all")
    assert counts(stream) == {"held-out": stream.total}
    assert (stream.format, len(stream.schema.fields)) == ("numbers", 1)


def test_a_source_without_a_test_set_wants_to_be_told() -> None:
    with pytest.raises(ConfigError, match="numbers source") as caught:
        with_held_out(NumberedSource([3]), None)
    assert caught.value.code == "held-out-unsaid"
    assert "--held-out" in caught.value.remedy


@pytest.mark.parametrize("held_out", [0, 1])
def test_a_number_beside_a_test_set_is_refused(held_out: int) -> None:
    with pytest.raises(ConfigError) as caught:
        with_held_out(NumberedSource([3], test_records=2), held_out)
    assert caught.value.code == "held-out-given"


@pytest.mark.parametrize(
    ("held_out", "code"), [(3, "held-out-too-many"), (-1, "held-out-negative")]
)
@pytest.mark.parametrize("knows_total", [True, False])
def test_a_number_that_leaves_nothing_to_train_on_is_refused(
    held_out: int, code: str, *, knows_total: bool
) -> None:
    source = NumberedSource([2, 1], knows_total=knows_total)
    with pytest.raises(ConfigError) as caught:
        counts(with_held_out(source, held_out))
    assert caught.value.code == code
    assert caught.value.expected == "0 to 2 held-out records"


def test_a_source_that_grows_between_counting_and_reading_is_refused() -> None:
    source = NumberedSource([2], knows_total=False)
    chunks = with_held_out(source, 1).chunks()
    next(chunks)
    source.chunk_sizes.append(1)
    with pytest.raises(StorageError) as caught:
        list(chunks)
    assert caught.value.code == "data-changed"
