"""Parts that change on their own, in twin copies: Romulus (Correia et al., SPAA 2018).

All stores go to *main*; *back* is the last consistent copy. A transaction has four
fences, however large it is:

    state = mutating; flush; fence                 1
    stores to main; flush them; fence              2  main is durable before it counts
    state = copying; flush; fence                  3  the commit point
    copy what changed to back; flush; fence        4
    state = idle; flush                            durable with the next fence

Recovery: flush and fence of all, for a process that was killed leaves stores that are
seen and not durable; then from *mutating* main is copied from back, from *copying* back
from main. All of it may be interrupted and begun again. What changed is logged in
memory only; where that is more than a quarter of all, all is copied.

Layout, in pages: the static header (`head_page`) | the state word | main | back, the
last two of the same size. There are no stores but by `Transaction.write`: the released
code of Plinius has some that bypass its log, and loses all weights in such a crash.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Final, Self, TypeAlias

from typing_extensions import Buffer

from cloister.storage.mirror.head_page import Head, read_head, write_head
from cloister.storage.mirror.refusals import damaged
from cloister.storage.mirror.region import (
    PAGE,
    WORD,
    Region,
    check_range,
    settle,
    whole_pages,
)

_WORD_AT: Final = PAGE
_MAIN_AT: Final = 2 * PAGE
# Far apart: no flipped bit makes one state another.
_IDLE: Final = b"idle\0\0\0\0"
_MUTATING: Final = b"mutating"
_COPYING: Final = b"copying\0"
_CHUNK_BYTES: Final = 2**20
# Above this part of all, one copy of all is cheaper than a log (RomulusLog's figure).
_LOGGED_PART: Final = 4

_Ranges: TypeAlias = Iterable[tuple[int, int]]


class Transaction:
    """Stores that count together or not at all; made by `TwinRegion.transaction`."""

    def __init__(self, region: Region, *, capacity: int) -> None:
        self._region = region
        self._capacity = capacity
        self._log: list[tuple[int, int]] = []
        self._logged_bytes = 0
        self._whole = False
        self._ended = False
        self._lock = threading.Lock()

    def write(self, offset: int, data: Buffer) -> None:
        """Stores `data` from `offset` on; seen by `TwinRegion.read_into` at once.

        Several threads may, on ranges that do not overlap.

        Raises:
            StorageError: If the medium fails.
        """
        if self._ended:
            raise RuntimeError("the transaction is over")
        length = memoryview(data).nbytes
        check_range(offset, length, limit=self._capacity)
        # Before it is stored: a write that is interrupted is rolled back as well.
        self._note(offset, length)
        self._region.write(_MAIN_AT + offset, data)

    def end(self) -> list[tuple[int, int]]:
        """Returns offset and length of all that was written; no more can be."""
        self._ended = True
        return [(0, self._capacity)] if self._whole else _merged(self._log)

    def _note(self, offset: int, length: int) -> None:
        with self._lock:
            self._logged_bytes += length
            if self._logged_bytes * _LOGGED_PART > self._capacity:
                self._whole = True
                self._log.clear()
            elif not self._whole:
                self._log.append((offset, length))


class TwinRegion:
    """Twin copies in a region, which they do not close; made by `format` or `open`.

    One transaction at a time; reading beside one sees what it has written so far.
    """

    def __init__(self, region: Region, head: Head) -> None:
        self._region = region
        self._head = head
        self._settled = True

    @staticmethod
    def region_bytes(*, capacity: int) -> int:
        """Returns how large a region must be to hold `capacity` bytes twice."""
        return _MAIN_AT + 2 * whole_pages(capacity)

    @classmethod
    def format(cls, region: Region, *, capacity: int, header: bytes) -> Self:
        """Returns a twin of zeros on a new region; durable when this returns.

        Args:
            region: New, all zeros, of `region_bytes`.
            capacity: How many bytes it holds.
            header: What stands in front of them for good, up to 3 KiB, in the clear.

        Raises:
            StorageError: If the medium fails.
        """
        if capacity < 1:
            raise ValueError(f"a capacity of {capacity} bytes")
        head = Head(kind=b"twin", sizes=(capacity, 0), header=header)
        check_range(0, cls.region_bytes(capacity=capacity), limit=region.size)
        region.write(_WORD_AT, _IDLE)
        region.flush(_WORD_AT, WORD)
        region.fence()
        write_head(region, head)
        return cls(region, head)

    @classmethod
    def open(cls, region: Region) -> Self:
        """Returns the twin that lies on a region, as its last transaction left it.

        Raises:
            StorageError: If none does (``mirror-foreign``), it has another version
                (``mirror-version``), it was damaged (``mirror-damaged``), or the
                medium fails.
        """
        head = read_head(region, kind=b"twin")
        capacity = head.sizes[0]
        needed = cls.region_bytes(capacity=capacity)
        if capacity < 1 or region.size < needed:
            raise damaged(region.path, f"{region.size} bytes for {capacity} twice")
        # The process before may have been killed between a store and its fence: a
        # recovery that believes a state word which a cut takes back tears the copy
        # that this cut would have been undone from.
        settle(region, needed)
        twin = cls(region, head)
        twin._recover()
        return twin

    @property
    def header(self) -> bytes:
        """What `format` was given."""
        return self._head.header

    @property
    def capacity(self) -> int:
        """How many bytes it holds."""
        return self._head.sizes[0]

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills `view` from `offset` on.

        Raises:
            StorageError: If the medium fails.
        """
        check_range(offset, view.nbytes, limit=self.capacity)
        self._region.read_into(_MAIN_AT + offset, view)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Gives a transaction; durable when the block has ended.

        If the block raises, all is as it was before. If the end itself is interrupted,
        the twin is out of use: what counts is found by opening it again.

        Raises:
            StorageError: If the medium fails.
        """
        if not self._settled:
            raise RuntimeError("a transaction is under way, or was interrupted")
        self._settled = False
        self._state(_MUTATING)
        self._region.fence()
        transaction = Transaction(self._region, capacity=self.capacity)
        try:
            yield transaction
        except BaseException:
            # Also on Ctrl-C: half a transaction must never be read. Raised again.
            self._copy_to_main(transaction.end())
            self._settled = True
            raise
        self._commit(transaction.end())
        self._settled = True

    def _commit(self, ranges: _Ranges) -> None:
        for offset, length in ranges:
            self._region.flush(_MAIN_AT + offset, length)
        self._region.fence()
        self._state(_COPYING)
        self._region.fence()
        self._copy_to_back(ranges)

    def _recover(self) -> None:
        word = bytearray(WORD)
        self._region.read_into(_WORD_AT, memoryview(word))
        everything = [(0, self.capacity)]
        if word == _MUTATING:
            self._copy_to_main(everything)
        elif word == _COPYING:
            self._copy_to_back(everything)
        elif word != _IDLE:
            raise damaged(self._region.path, f"its state word is {word.hex()}")

    def _copy_to_main(self, ranges: _Ranges) -> None:
        self._copy(ranges, source=self._back_at, target=_MAIN_AT)

    def _copy_to_back(self, ranges: _Ranges) -> None:
        self._copy(ranges, source=_MAIN_AT, target=self._back_at)

    def _copy(self, ranges: _Ranges, *, source: int, target: int) -> None:
        scratch = memoryview(bytearray(min(_CHUNK_BYTES, self.capacity)))
        for offset, length in ranges:
            for start in range(offset, offset + length, len(scratch)):
                part = scratch[: min(len(scratch), offset + length - start)]
                self._region.read_into(source + start, part)
                self._region.write(target + start, part)
            self._region.flush(target + offset, length)
        self._region.fence()
        # No fence: if it never becomes durable, both copies are equal anyway, and the
        # next transaction's first fence takes it along.
        self._state(_IDLE)

    def _state(self, word: bytes) -> None:
        self._region.write(_WORD_AT, word)
        self._region.flush(_WORD_AT, WORD)

    @property
    def _back_at(self) -> int:
        return _MAIN_AT + whole_pages(self.capacity)


def _merged(log: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for offset, length in sorted(log):
        last, last_length = merged[-1] if merged else (0, -1)
        if offset <= last + last_length:
            merged[-1] = (last, max(last_length, offset + length - last))
        else:
            merged.append((offset, length))
    return merged
