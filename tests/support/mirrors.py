"""Small mirrors: whose they are, what they hold, and a medium that is memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from cloister.errors import StorageError
from cloister.storage.keys import Secret
from cloister.storage.mirror.array_layout import ArrayLayout, spec_of
from cloister.storage.mirror.block_work import BlockWork
from cloister.storage.mirror.manifest import Bound
from cloister.storage.mirror.parts_mirror import PartsMirror
from cloister.storage.mirror.region import Region
from cloister.storage.mirror.sealed_parts import parts_bytes
from cloister.storage.mirror.sealed_slots import slot_bytes
from cloister.storage.mirror.slots import SlotRing
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.mirror.subject import (
    ArraySpec,
    MirrorPlace,
    Subject,
    Survives,
)
from cloister.storage.mirror.twin import TwinRegion

SUBJECT = Subject(run_id="tea/run-7", plan_hash=b"p" * 32, role="server", party="alice")
STATE_KEY = Secret(bytes(range(32)))
SMALL_BLOCK = 64
SLOTS = 3

State = dict[str, NDArray[np.generic]]


def place_at(
    path: Path = Path("state"), *, key: Secret = STATE_KEY, subject: Subject = SUBJECT
) -> MirrorPlace:
    """Returns where a node's state lies."""
    return MirrorPlace(path=path, key=key, subject=subject)


def some_state(completed: int) -> State:
    """Returns a state that no other round has."""
    generator = np.random.default_rng(completed)
    return {
        "weights": generator.normal(size=(5, 7)).astype("<f4"),
        "steps": np.array(completed, "<i8"),
        "none": np.zeros((0, 3), "<f8"),
        "mask": generator.integers(0, 2, 30).astype("|u1"),
    }


def specs_of(state: State) -> tuple[ArraySpec, ...]:
    """Returns what a mirror is told of such states."""
    return tuple(spec_of(name, array) for name, array in state.items())


SPECS = specs_of(some_state(0))


def empty_state(specs: Sequence[ArraySpec] = SPECS) -> State:
    """Returns arrays to restore into, full of what is not in any state."""
    return {spec.name: np.full(spec.shape, 77, np.dtype(spec.dtype)) for spec in specs}


def same(one: State, other: State) -> bool:
    """Returns whether two states are the same to the bit."""
    return one.keys() == other.keys() and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )


@dataclass
class MemoryRegion:
    """A medium that keeps everything.

    Attributes:
        content: What lies on it.
        written: Bytes that were stored so far.
    """

    content: bytearray
    path: Path = Path("state")
    survives: Survives = "process-death"
    written: int = 0

    @property
    def size(self) -> int:
        """Its length."""
        return len(self.content)

    def write(self, offset: int, data: Buffer) -> None:
        """Stores."""
        content = memoryview(data).cast("B")
        assert 0 <= offset <= offset + len(content) <= len(self.content)
        self.content[offset : offset + len(content)] = content
        self.written += len(content)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills."""
        assert 0 <= offset <= offset + buffer.nbytes <= len(self.content)
        buffer[:] = self.content[offset : offset + buffer.nbytes]

    def flush(self, offset: int, length: int) -> None:
        """Does nothing."""

    def fence(self) -> None:
        """Does nothing."""

    def publish(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


PART_SPECS = (
    ArraySpec(name="count", shape=(1,), dtype="<i8"),
    ArraySpec(name="table", shape=(10, 10), dtype="<u2"),
)


def parts_memory() -> MemoryRegion:
    """Returns a medium with room for `parts_begun`, all zeros."""
    layout = ArrayLayout(PART_SPECS, block_bytes=SMALL_BLOCK)
    bound = Bound(kind="parts", subject=SUBJECT, layout=layout)
    size = TwinRegion.region_bytes(capacity=parts_bytes(bound))
    return MemoryRegion(bytearray(size))


def parts_begun(region: Region) -> PartsMirror:
    """Returns a new mirror of parts on a region."""
    return PartsMirror.begin(region, place_at(), PART_SPECS, block_bytes=SMALL_BLOCK)


def parts_found(region: Region, place: MirrorPlace | None = None) -> PartsMirror:
    """Returns the mirror of parts that lies on a region."""
    return PartsMirror.find(
        region, place or place_at(), PART_SPECS, block_bytes=SMALL_BLOCK
    )


def small_work() -> BlockWork:
    """Returns one thread's work on small blocks."""
    return BlockWork(SMALL_BLOCK, threads=None, count=1)


def memory() -> MemoryRegion:
    """Returns a medium with room for `begun`, all zeros."""
    layout = ArrayLayout(SPECS, block_bytes=SMALL_BLOCK)
    bound = Bound(kind="state", subject=SUBJECT, layout=layout)
    size = SlotRing.region_bytes(slots=SLOTS, slot_bytes=slot_bytes(bound))
    return MemoryRegion(bytearray(size))


def begun(region: Region, place: MirrorPlace | None = None) -> StateMirror:
    """Returns a new mirror of small blocks on a region."""
    return StateMirror.begin(
        region, place or place_at(), SPECS, slots=SLOTS, work=small_work()
    )


def found(region: Region, place: MirrorPlace | None = None) -> StateMirror:
    """Returns the mirror that lies on a region."""
    return StateMirror.find(
        region, place or place_at(), SPECS, slots=SLOTS, work=small_work()
    )


def save(mirror: StateMirror, completed: int) -> bytes:
    """Saves a round's state and returns its digest."""
    kept = mirror.seal(completed, some_state(completed), {"marks": completed * 3})
    mirror.commit()
    return kept.digest


def restored(mirror: StateMirror) -> tuple[int, State]:
    """Returns the newest state, its round first.

    Raises:
        StorageError: If it does not open; then nothing of it was left.
    """
    assert mirror.newest is not None
    into = empty_state()
    try:
        mirror.restore(mirror.newest, into)
    except StorageError:
        assert all(not array.any() for array in into.values())
        raise
    return mirror.newest.round, into
