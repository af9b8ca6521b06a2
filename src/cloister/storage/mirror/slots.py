"""States as a whole, in a ring of slots: one atomic flip makes the next one current.

Where all of a state changes each round, twin copies would write it twice. Here it is
written once, beside those that are kept, and then named by a store of eight bytes:

    flush what was written; fence             the slot is durable before its name
    store the state word; flush; fence        the commit point

So at every instant the current slot is whole, and was named after it was. A process
that is killed between the store and its fence leaves a name that is seen and not yet
durable; so the next one begins with flush and fence, before it believes any name.

Layout, in pages: the static header (`head_page`) | the state word | the slots, each
rounded up to whole pages. The state word is, little endian, the number of flips (40
bits) above 24 bits of its CRC-32; flip n names slot (n - 1) modulo the number of slots.

What this module does not do: know whether what a slot holds is genuine (that is the
sealing's), or whether slots older than the current one were written over in part.
"""

from __future__ import annotations

import binascii
from typing import Final, Self

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
_SLOTS_AT: Final = 2 * PAGE
_CHECK_BITS: Final = 24
_CHECK_MASK: Final = 2**_CHECK_BITS - 1


class SlotRing:
    """Slots in a region; made by `format` or `open`. It does not close the region.

    `write` and `read_into` may be called by several threads at once, on ranges that do
    not overlap; everything else by one, after those have told it that they are done.
    """

    def __init__(self, region: Region, head: Head, *, sequence: int) -> None:
        self._region = region
        self._head = head
        self._sequence = sequence
        self._written: list[tuple[int, int]] = []
        self._flipping = False

    @staticmethod
    def region_bytes(*, slots: int, slot_bytes: int) -> int:
        """Returns how large a region must be."""
        return _SLOTS_AT + slots * whole_pages(slot_bytes)

    @classmethod
    def format(
        cls, region: Region, *, slots: int, slot_bytes: int, header: bytes
    ) -> Self:
        """Returns an empty ring on a new region; durable when this returns.

        Args:
            region: New, of `region_bytes`.
            slots: How many, 2 or more.
            slot_bytes: Size of each.
            header: What stands in front of them for good, up to 3 KiB, in the clear.

        Raises:
            StorageError: If the medium fails.
        """
        if slots < 2 or slot_bytes < 1:
            raise ValueError(f"{slots} slots of {slot_bytes} bytes")
        head = Head(kind=b"ring", sizes=(slots, slot_bytes), header=header)
        needed = cls.region_bytes(slots=slots, slot_bytes=slot_bytes)
        check_range(0, needed, limit=region.size)
        region.write(_WORD_AT, _word(0))
        region.flush(_WORD_AT, WORD)
        region.fence()
        write_head(region, head)
        return cls(region, head, sequence=0)

    @classmethod
    def open(cls, region: Region) -> Self:
        """Returns the ring that lies on a region; what is current is durable.

        Raises:
            StorageError: If none does (``mirror-foreign``), it has another version
                (``mirror-version``), it was damaged (``mirror-damaged``), or the
                medium fails.
        """
        head = read_head(region, kind=b"ring")
        slots, slot_bytes = head.sizes
        if slots < 2 or slot_bytes < 1:
            raise damaged(region.path, f"{slots} slots of {slot_bytes} bytes")
        needed = cls.region_bytes(slots=slots, slot_bytes=slot_bytes)
        if region.size < needed:
            raise damaged(region.path, f"{region.size} bytes instead of {needed}")
        # The process before may have been killed between a flip's store and its fence.
        settle(region, needed)
        return cls(region, head, sequence=_read_sequence(region))

    @property
    def header(self) -> bytes:
        """What `format` was given."""
        return self._head.header

    @property
    def slots(self) -> int:
        """How many there are."""
        return self._head.sizes[0]

    @property
    def slot_bytes(self) -> int:
        """Size of each."""
        return self._head.sizes[1]

    @property
    def sequence(self) -> int:
        """How many flips there were."""
        return self._sequence

    @property
    def current(self) -> int | None:
        """The slot of the last flip; None before the first."""
        return (self._sequence - 1) % self.slots if self._sequence else None

    @property
    def following(self) -> int:
        """The slot that is being written, or will be."""
        return self._sequence % self.slots

    @property
    def newest_first(self) -> tuple[int, ...]:
        """Slots that flips have named, the current one first.

        The last of a full ring is also the following one: if a save was interrupted,
        it lies written over in part.
        """
        return tuple(
            (self._sequence - 1 - age) % self.slots
            for age in range(min(self._sequence, self.slots))
        )

    def write(self, offset: int, data: Buffer) -> None:
        """Writes to the following slot, from `offset` in it on.

        Raises:
            StorageError: If the medium fails.
        """
        self._require_whole()
        length = memoryview(data).nbytes
        check_range(offset, length, limit=self.slot_bytes)
        start = self._at(self.following) + offset
        # Before it is stored: a write that is interrupted is flushed as well.
        self._written.append((start, length))
        self._region.write(start, data)

    def read_into(self, slot: int, offset: int, view: memoryview) -> None:
        """Fills `view` from `offset` in a slot on.

        Raises:
            StorageError: If the medium fails.
        """
        check_range(slot, 1, limit=self.slots)
        check_range(offset, view.nbytes, limit=self.slot_bytes)
        self._region.read_into(self._at(slot) + offset, view)

    def flip(self) -> None:
        """Makes the following slot the current one; durable when this returns.

        If it is interrupted the ring is out of use: whether the flip took place is
        found by opening it again.

        Raises:
            StorageError: If the medium fails.
        """
        self._require_whole()
        self._flipping = True
        for start, length in self._written:
            self._region.flush(start, length)
        self._region.fence()
        self._region.write(_WORD_AT, _word(self._sequence + 1))
        self._region.flush(_WORD_AT, WORD)
        self._region.fence()
        self._written.clear()
        self._sequence += 1
        self._flipping = False

    def _at(self, slot: int) -> int:
        return _SLOTS_AT + slot * whole_pages(self.slot_bytes)

    def _require_whole(self) -> None:
        # The word may name the slot that this object would write to next.
        if self._flipping:
            raise RuntimeError("a flip was interrupted; open the ring again")


def _word(sequence: int) -> bytes:
    check = binascii.crc32(sequence.to_bytes(5, "little")) & _CHECK_MASK
    return (sequence << _CHECK_BITS | check).to_bytes(WORD, "little")


def _read_sequence(region: Region) -> int:
    word = bytearray(WORD)
    region.read_into(_WORD_AT, memoryview(word))
    sequence = int.from_bytes(word, "little") >> _CHECK_BITS
    if word != _word(sequence):
        raise damaged(region.path, f"its state word is {word.hex()}")
    return sequence
