from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from cloister.errors import StorageError
from cloister.storage.read_ahead import RecordsAhead, SourceAhead
from cloister.storage.records import Batch, SplitName

LONG = 10.0  # seconds; no test waits so long


def rows(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


@dataclass
class Slow:
    """Records that are read when the test says so; it knows who read what."""

    may_read: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    read_by: list[tuple[str, list[int]]] = field(default_factory=list)

    def __len__(self) -> int:
        return 100

    def read(self, indices: NDArray[np.int64]) -> Batch:
        self.began.set()
        assert self.may_read.wait(LONG)
        self.read_by.append((threading.current_thread().name, indices.tolist()))
        if (indices == 99).any():
            raise StorageError("it was altered", code="data-damaged")
        return {"x": indices * 2}

    def split(self, _: SplitName) -> Slow:
        return self


def ahead(slow: Slow) -> RecordsAhead:
    return SourceAhead(slow).split("train")


def test_what_is_expected_is_read_before_it_is_asked_for() -> None:
    slow = Slow()
    records = ahead(slow)
    records.expect(rows(3, 1))
    assert slow.began.wait(LONG)
    slow.may_read.set()
    assert records.read(rows(3, 1))["x"].tolist() == [6, 2]
    assert [numbers for _, numbers in slow.read_by] == [[3, 1]]


def test_records_are_the_same_whether_they_were_expected_or_not() -> None:
    slow = Slow()
    slow.may_read.set()
    records = ahead(slow)
    assert len(records) == 100
    for expected in ([5, 6], [6, 5], [5], []):
        records.expect(rows(*expected))
        assert records.read(rows(5, 6))["x"].tolist() == [10, 12]
    assert records.read(rows(5, 6))["x"].tolist() == [10, 12]


def test_all_is_read_in_one_thread_that_is_not_the_callers() -> None:
    slow = Slow()
    slow.may_read.set()
    source = SourceAhead(slow)
    source.split("train").read(rows(1))
    source.split("train").expect(rows(2))
    source.split("held-out").read(rows(3))
    assert source.split("train") is source.split("train")
    assert {name for name, _ in slow.read_by} == {"records_0"}


def test_indices_may_be_changed_after_they_were_expected() -> None:
    slow = Slow()
    records = ahead(slow)
    indices = rows(4)
    records.expect(indices)
    indices[:] = 7
    slow.may_read.set()
    assert records.read(rows(4))["x"].tolist() == [8]
    assert records.read(indices)["x"].tolist() == [14]


def test_what_is_no_longer_expected_is_not_read() -> None:
    slow = Slow()
    records = ahead(slow)
    for number in range(5):
        records.expect(rows(number))
        assert slow.began.wait(LONG)
    slow.may_read.set()
    assert records.read(rows(4))["x"].tolist() == [8]
    # The first was under way.
    assert [numbers for _, numbers in slow.read_by] == [[0], [4]]


def test_two_callers_never_get_one_batch() -> None:
    slow = Slow()
    slow.may_read.set()
    records = ahead(slow)
    records.expect(rows(4))
    first, second = records.read(rows(4)), records.read(rows(4))
    assert first["x"] is not second["x"]


def test_a_damaged_record_is_met_where_it_is_used_and_not_before() -> None:
    slow = Slow()
    slow.may_read.set()
    records = ahead(slow)
    records.expect(rows(99))
    assert records.read(rows(1))["x"].tolist() == [2]
    records.expect(rows(99))
    with pytest.raises(StorageError, match="altered"):
        records.read(rows(99))
    # Reading goes on; whoever asks again is told again.
    with pytest.raises(StorageError, match="altered"):
        records.read(rows(99))
    assert records.read(rows(1))["x"].tolist() == [2]
