"""Reads the next records while the present ones are used, in a thread of its own.

Decryption then costs a training step nothing but a share of a core. What is read, and
in which order, does not change: only when. One batch is held ahead, no more.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from cloister.storage.records import Batch, DataSource, Records, SplitName


class RecordsAhead(Records):
    """Records that can be asked for before they are needed.

    Args:
        records: Where they come from; read by one thread at a time.
        thread: One thread.
    """

    __slots__ = ("_expected", "_lock", "_records", "_thread")

    def __init__(self, records: Records, thread: ThreadPoolExecutor) -> None:
        self._records = records
        self._thread = thread
        self._lock = Lock()
        self._expected: tuple[NDArray[np.int64], Future[Batch]] | None = None

    @override
    def __len__(self) -> int:
        return len(self._records)

    def expect(self, indices: NDArray[np.int64]) -> None:
        """Begins to read the records at `indices`; what was expected is dropped."""
        wanted = indices.copy()
        dropped = self._take()
        if dropped is not None:
            # Not begun yet, it would only keep what is wanted waiting.
            dropped[1].cancel()
        self._expected = wanted, self._thread.submit(self._records.read, wanted)

    @override
    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Returns the records at `indices`; at once, if they were expected.

        Raises:
            StorageError: If a record cannot be read whole and authentic.
        """
        expected = self._take()
        if expected is not None and np.array_equal(expected[0], indices):
            return expected[1].result()
        return self._thread.submit(self._records.read, indices).result()

    def _take(self) -> tuple[NDArray[np.int64], Future[Batch]] | None:
        """Returns what is expected, to one caller only: a batch may be written to."""
        with self._lock:
            expected, self._expected = self._expected, None
            return expected


class SourceAhead(DataSource):
    """A data set whose records can be asked for before they are needed.

    Its thread is made once, with the first record, and ends with the process.

    Args:
        source: The data set.
    """

    __slots__ = ("_source", "_splits", "_thread")

    def __init__(self, source: DataSource) -> None:
        self._source = source
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._splits: dict[SplitName, RecordsAhead] = {}

    @override
    def split(self, name: SplitName) -> RecordsAhead:
        """Returns the records of one split, the same object each time."""
        if name not in self._splits:
            self._splits[name] = RecordsAhead(self._source.split(name), self._thread)
        return self._splits[name]
