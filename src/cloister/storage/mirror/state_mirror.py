"""A node's state on a medium: sealed whole, found whole, never half of two.

Form: ``docs/spec/mirror.md``. Two slots or more lie in a ring; a save fills the slot
that follows and one atomic flip makes it the newest. What this module does not do: say
whether the newest state is the newest there ever was; that is the custodians' (marks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from types import MappingProxyType
from typing import Final, Self

from cloister.storage.mirror.array_layout import ArrayLayout, Arrays
from cloister.storage.mirror.block_work import BlockWork
from cloister.storage.mirror.manifest import (
    Bound,
    Manifest,
    checked_counters,
    digest_of,
)
from cloister.storage.mirror.medium import open_region
from cloister.storage.mirror.mirror_header import Title
from cloister.storage.mirror.refusals import damaged
from cloister.storage.mirror.region import Region
from cloister.storage.mirror.sealed_slots import SealedSlots, slot_bytes
from cloister.storage.mirror.slots import SlotRing
from cloister.storage.mirror.subject import ArraySpec, Kept, MirrorPlace, Survives

# Large enough that a call costs little beside its work, and small enough to stay in a
# core's own cache between two steps: 1 MiB does not, and restores in 24 ms what takes
# 17 (102.4 MB on tmpfs, one thread; 128 KiB: 21). Saves take 19 to 20 with both.
BLOCK_BYTES: Final = 512 * 1024
_NO_COUNTERS: Final[Mapping[str, int]] = MappingProxyType({})


class StateMirror:
    """States of one node, of which the newest that was committed always opens.

    One thread calls it at a time. It holds its file, which nobody else can open then.
    Made by `create` or `open`; on a region of somebody else's, by `begin` or `find`.
    """

    def __init__(
        self,
        place: MirrorPlace,
        region: Region,
        ring: SlotRing,
        slots: SealedSlots,
        bound: Bound,
    ) -> None:
        self._place = place
        self._region = region
        self._ring = ring
        self._slots = slots
        self._bound = bound
        self._states: list[tuple[Kept, Manifest]] = []
        self._sealed: tuple[Kept, Manifest] | None = None
        self._named = True

    @classmethod
    def create(
        cls,
        place: MirrorPlace,
        arrays: Sequence[ArraySpec],
        *,
        slots: int = 2,
        threads: Executor | None = None,
        count: int = 1,
    ) -> Self:
        """Returns a mirror without any state.

        It appears under its name with the first `commit`: what is there always has a
        state. If it is closed before, nothing is left of it.

        Args:
            place: Where, whose and under which key; its directory must exist.
            arrays: Every array of the state; names are unique, the order is kept.
            slots: 2 or more; `slots` - 1 states are kept.
            threads: Share the work of `seal` and `restore`, if there are any.
            count: Threads that work at once, the caller's included.

        Raises:
            ConfigError: If the arrays cannot be mirrored (``mirror-arrays``).
            StorageError: If there is a mirror (``mirror-exists``), no room
                (``mirror-full``), or it cannot be written (``mirror-unwritable``,
                ``mirror-in-use``).
            PlatformError: If the medium cannot be used here.
        """
        work = BlockWork(BLOCK_BYTES, threads=threads, count=count)
        region = _region(place, arrays, work, slots=slots, new=True)
        with ExitStack() as undo:
            undo.callback(region.close)
            mirror = cls.begin(region, place, arrays, slots=slots, work=work)
            undo.pop_all()
        return mirror

    @classmethod
    def open(
        cls,
        place: MirrorPlace,
        arrays: Sequence[ArraySpec],
        *,
        slots: int = 2,
        threads: Executor | None = None,
        count: int = 1,
    ) -> Self:
        """Returns the mirror that lies there; `newest` is not None.

        Args:
            place: As `create`.
            arrays: As `create`; the very same.
            slots: As `create`; the very same.
            threads: As `create`.
            count: As `create`.

        Raises:
            ConfigError: If the arrays cannot be mirrored (``mirror-arrays``).
            StorageError: If there is none (``mirror-missing``), it is another node's or
                another layout's (``mirror-foreign``), was sealed under another key
                (``mirror-key``), does not open (``mirror-damaged``), is of another
                version (``mirror-version``), or of a running process
                (``mirror-in-use``).
            PlatformError: If the medium cannot be used here.
        """
        work = BlockWork(BLOCK_BYTES, threads=threads, count=count)
        region = _region(place, arrays, work, slots=slots, new=False)
        with ExitStack() as undo:
            undo.callback(region.close)
            mirror = cls.find(region, place, arrays, slots=slots, work=work)
            undo.pop_all()
        return mirror

    @classmethod
    def begin(
        cls,
        region: Region,
        place: MirrorPlace,
        arrays: Sequence[ArraySpec],
        *,
        slots: int,
        work: BlockWork,
    ) -> Self:
        """Returns a mirror without any state on a new region, which it closes.

        Raises:
            StorageError: If the medium fails.
        """
        bound = _bound(place, arrays, work)
        header = Title(bound=bound, slots=slots).write(place.key)
        ring = SlotRing.format(
            region, slots=slots, slot_bytes=slot_bytes(bound), header=header
        )
        sealed = SealedSlots(
            ring, path=place.path, key=place.key, bound=bound, work=work
        )
        mirror = cls(place, region, ring, sealed, bound)
        mirror._named = False
        return mirror

    @classmethod
    def find(
        cls,
        region: Region,
        place: MirrorPlace,
        arrays: Sequence[ArraySpec],
        *,
        slots: int,
        work: BlockWork,
    ) -> Self:
        """Returns the mirror that lies on a region, which it closes.

        1. The header is this node's, under its key (`Title.check`).
        2. The slots are those that the header means.
        3. The manifests of all states that are kept open, each in its place.

        What lies in the blocks is verified by `restore`.

        Raises:
            StorageError: As `open`.
        """
        bound = _bound(place, arrays, work)
        ring = SlotRing.open(region)
        # Step 1
        Title(bound=bound, slots=slots).check(ring.header, place.key, path=place.path)
        # Step 2
        if (ring.slots, ring.slot_bytes) != (slots, slot_bytes(bound)):
            raise damaged(place.path, "the sizes in its header")
        # Step 3
        if ring.current is None:
            raise damaged(place.path, "it has no state")
        sealed = SealedSlots(
            ring, path=place.path, key=place.key, bound=bound, work=work
        )
        mirror = cls(place, region, ring, sealed, bound)
        # Not the slot that follows: a save that was cut short has left part of
        # another state there. Of all others every one must open: a newest state
        # that does not is never passed over in favour of an older one.
        for age, slot in enumerate(ring.newest_first[: slots - 1]):
            manifest = sealed.find(slot, sequence=ring.sequence - age)
            mirror._states.append((mirror._kept(manifest), manifest))
        return mirror

    @property
    def place(self) -> MirrorPlace:
        """Where it lies, whose it is, under which key."""
        return self._place

    @property
    def survives(self) -> Survives:
        """What a committed state outlives."""
        return self._region.survives

    @property
    def size_bytes(self) -> int:
        """Size of the whole mirror on its medium."""
        return self._region.size

    @property
    def newest(self) -> Kept | None:
        """The state of the last `commit`; None before the first of a new mirror."""
        return self._states[0][0] if self._states else None

    @property
    def kept(self) -> tuple[Kept, ...]:
        """All states that can be restored, the newest first: `slots` - 1 at most."""
        return tuple(kept for kept, _ in self._states)

    def restore(self, kept: Kept, into: Arrays) -> None:
        """Fills arrays with a state.

        Args:
            kept: One of `self.kept`.
            into: Every array of the state: writable, in C order, of the shape and type
                that were given at the opening.

        Raises:
            StorageError: If any of it is not what was sealed (``mirror-damaged``), or
                cannot be read. Nothing of the state is left in `into` then: it is all
                zeros, and must not be used.
            RuntimeError: If `kept` is none of `self.kept`, or `into` does not fit.
        """
        for own, manifest in self._states:
            if own.digest == kept.digest:
                self._slots.restore(manifest, into)
                return
        raise RuntimeError("the mirror does not keep this state")

    def seal(
        self,
        completed: int,
        arrays: Arrays,
        counters: Mapping[str, int] = _NO_COUNTERS,
    ) -> Kept:
        """Seals a state into the slot that follows; `commit` makes it the newest.

        Until then nothing changes: `newest` and `kept` are what they were. A second
        `seal` before `commit` takes the first one's place.

        Args:
            completed: Rounds completed.
            arrays: Every array of the state, in C order, of the shape and type that
                were given at the opening. Nobody may change one meanwhile.
            counters: What else is counted: up to 64 short names, values from 0 to
                2^64 - 1.

        Raises:
            StorageError: If it cannot be written (``mirror-unwritable``).
            RuntimeError: If the arrays or the numbers do not fit.
        """
        self._sealed = None
        if not 0 <= completed < 2**63:
            raise RuntimeError("a state has no such round")
        manifest = self._slots.write(
            arrays, completed=completed, counters=checked_counters(counters)
        )
        self._sealed = self._kept(manifest), manifest
        return self._sealed[0]

    def commit(self) -> None:
        """Makes what was sealed the newest; it is durable when this returns.

        Raises:
            StorageError: If it cannot be written (``mirror-unwritable``). The newest
                durable state is then the former one or this one.
            RuntimeError: If nothing was sealed since the last time.
        """
        if self._sealed is None:
            raise RuntimeError("no state was sealed")
        sealed, self._sealed = self._sealed, None
        self._ring.flip()
        if not self._named:
            self._region.publish()
            self._named = True
        self._states = [sealed, *self._states][: self._ring.slots - 1]

    def close(self) -> None:
        """Gives the file back; what was sealed and not committed is lost."""
        self._region.close()

    def _kept(self, manifest: Manifest) -> Kept:
        return Kept(
            round=manifest.completed,
            counters=manifest.counters,
            digest=digest_of(manifest, self._bound),
            slot=manifest.slot,
        )


def _region(
    place: MirrorPlace,
    arrays: Sequence[ArraySpec],
    work: BlockWork,
    *,
    slots: int,
    new: bool,
) -> Region:
    room = slot_bytes(_bound(place, arrays, work))
    size = SlotRing.region_bytes(slots=slots, slot_bytes=room)
    return open_region(place.path, size=size, new=new, medium=place.medium)


def _bound(place: MirrorPlace, arrays: Sequence[ArraySpec], work: BlockWork) -> Bound:
    layout = ArrayLayout(arrays, block_bytes=work.block_bytes)
    return Bound(kind="state", subject=place.subject, layout=layout)
