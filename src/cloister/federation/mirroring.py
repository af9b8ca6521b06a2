"""The server's state on its medium: found at a start, and kept round by round.

Where it comes from: (1) from this plan's own mirror; (2) where there is none yet, from
the mirror of the plan before, of an amended plan; (3) from the plan's start. What it is
held against is the party's mark (`marks.check_state`). Beside it lies a journal: which
parties a round was going to be made of, with a number as quorum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import Final, Self

import numpy as np
from typing_extensions import override

from cloister.errors import StorageError
from cloister.federation.lineage import head_counters
from cloister.federation.marks import check_state
from cloister.federation.model_state import ModelState
from cloister.federation.state import StateKeeper
from cloister.plan.plan import Plan
from cloister.ratls.mark import Mark
from cloister.storage.mirror.parts_mirror import PartsMirror
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.mirror.subject import ArraySpec, Kept, MirrorPlace, Survives

# Threads that seal and open a state; memory is the bound soon.
MIRROR_THREADS: Final = 2
_DIGEST_BYTES: Final = 32


def journal_place(place: MirrorPlace) -> MirrorPlace:
    """Returns where the journal of cohorts lies: beside the server's mirror."""
    path = place.path
    return dataclasses.replace(place, path=path.with_name(f"{path.name}.cohort"))


class ServerMirror(StateKeeper):
    """The mirror of a server; made by `begin`.

    Args:
        state: The state; the caller moves it, and not while it is sealed.
        plan: The plan.
        place: Where it is kept.
        threads: Share the work.

    Attributes:
        resumed: Whether the state was found, and not made.
    """

    def __init__(
        self, state: ModelState, *, plan: Plan, place: MirrorPlace, threads: Executor
    ) -> None:
        self.resumed = False
        self._state = state
        self._plan = plan
        self._place = place
        self._threads = threads
        self._mirror: StateMirror | None = None
        self._newest: Kept | None = None
        self._sealed: Kept | None = None
        self._survives: Survives | None = None
        self._journal: _Journal | None = None
        self._open = ExitStack()

    @classmethod
    def begin(
        cls,
        state: ModelState,
        *,
        plan: Plan,
        place: MirrorPlace,
        former: MirrorPlace | None,
        mark: Mark | None,
        threads: Executor,
    ) -> Self:
        """Returns the server's mirror, and puts the newest state into `state`.

        Blocks for as long as the medium takes.

        Args:
            state: As the plan begins; it is what is kept where there is nothing to go
                on from.
            plan: The plan.
            place: Where the state is kept.
            former: Where it was kept under the plan before; None without one.
            mark: How far the server's party knows the run to be.
            threads: Share the work.

        Raises:
            ConfigError: If there is no state where there must be one
                (``state-missing``), or not the one that the plan goes on from
                (``state-differs``).
            VerificationError: If it is not what the party knows
                (``state-rolled-back``, ``state-forked``).
            StorageError: If a mirror cannot be opened or written.
        """
        begun = cls(state, plan=plan, place=place, threads=threads)
        try:
            begun._begin(former, mark)
        except BaseException:
            # Also on Ctrl-C: its lock would keep the next server out. Raised again.
            begun.close()
            raise
        return begun

    @property
    @override
    def newest(self) -> Kept:
        if self._newest is None:
            raise RuntimeError("a mirror begins with a state")
        return self._newest

    @property
    def survives(self) -> Survives:
        """What the newest state outlives."""
        if self._survives is None:
            raise RuntimeError("a mirror begins with a state")
        return self._survives

    @override
    def seal(self, completed: int, *, head: bytes | None) -> Kept:
        self._sealed = self._own().seal(
            completed, self._state.arrays(), head_counters(head)
        )
        return self._sealed

    @override
    def commit(self) -> None:
        self._own().commit()
        self._newest = self._sealed

    @override
    def choose(self, round_number: int, parties: tuple[str, ...]) -> None:
        if self._journal is None:
            raise RuntimeError("all must contribute, so nobody is chosen")
        self._journal.write(round_number, self.newest.digest, parties)

    @override
    def cohort(self) -> tuple[str, ...]:
        if self._journal is None:
            return ()
        return self._journal.read(self.newest.round + 1, self.newest.digest)

    def close(self) -> None:
        """Gives the files back; nothing may be under way."""
        self._open.close()

    def _begin(self, former: MirrorPlace | None, mark: Mark | None) -> None:
        own = self._find(self._place)
        found = own
        if own is None and former is not None:
            found = self._find(former)
        kept = check_state(
            self._plan,
            None if found is None else found.newest,
            mark,
            taken_over=own is None,
        )
        if kept is None or found is None:
            self.seal(0, head=None)
            self.commit()
        else:
            found.restore(kept, self._state.arrays())
            self._newest, self._survives, self.resumed = kept, found.survives, True
        if self._plan.rounds.quorum != "all":
            names = [worker.name for worker in self._plan.workers]
            self._journal = _Journal(journal_place(self._place), names)
            self._open.callback(self._journal.close)

    def _find(self, place: MirrorPlace) -> StateMirror | None:
        """Returns the mirror at a place, if there is one; it is closed with this."""
        try:
            found = StateMirror.open(
                place, self._state.specs(), threads=self._threads, count=MIRROR_THREADS
            )
        except StorageError as error:
            if error.code != "mirror-missing":
                raise
            return None
        self._open.callback(found.close)
        if place == self._place:
            self._mirror = found
        return found

    def _own(self) -> StateMirror:
        """Returns this plan's own mirror, made for the first state that it keeps.

        An amended plan's is made with its first round: until then the state is that of
        the plan before, by its digest too.
        """
        if self._mirror is None:
            self._mirror = StateMirror.create(
                self._place,
                self._state.specs(),
                threads=self._threads,
                count=MIRROR_THREADS,
            )
            self._open.callback(self._mirror.close)
            self._survives = self._mirror.survives
        return self._mirror


class _Journal:
    """Whom a round was going to be made of, so that it can be made of them again.

    It is of one state, by its digest: a journal that was put back, or that lies there
    from another run of the plan, says nothing.
    """

    def __init__(self, place: MirrorPlace, names: Sequence[str]) -> None:
        self._names = tuple(names)
        specs = (
            ArraySpec(name="round", shape=(1,), dtype="<u8"),
            ArraySpec(name="state", shape=(_DIGEST_BYTES,), dtype="|u1"),
            ArraySpec(name="parties", shape=(len(names),), dtype="|u1"),
        )
        try:
            self._parts = PartsMirror.open(place, specs)
        except StorageError as error:
            if error.code != "mirror-missing":
                raise
            self._parts = PartsMirror.create(place, specs)

    def write(self, round_number: int, state: bytes, parties: tuple[str, ...]) -> None:
        """Notes whom a round after a state is going to be made of."""
        chosen = np.array([name in parties for name in self._names], np.uint8)
        with self._parts.transaction() as transaction:
            transaction.write("round", 0, np.array([round_number], np.uint64))
            transaction.write("state", 0, np.frombuffer(state, np.uint8))
            transaction.write("parties", 0, chosen)

    def read(self, round_number: int, state: bytes) -> tuple[str, ...]:
        """Returns whom it was going to be made of; nobody if that is not known."""
        same_round = int(self._parts.read("round")[0]) == round_number
        if not same_round or self._parts.read("state").tobytes() != state:
            return ()
        chosen = self._parts.read("parties")
        return tuple(
            name for name, is_in in zip(self._names, chosen, strict=True) if is_in
        )

    def close(self) -> None:
        """Gives the file back."""
        self._parts.close()
