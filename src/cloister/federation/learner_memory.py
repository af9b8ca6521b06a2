"""What a learner keeps from round to round: on its node's disk, to outlive its process.

A state is sealed after each round of training, before the round's update leaves the
node. Whoever dies then, the round can be done again: the states of as many rounds lie
there as a server can fall behind.

What this module does not do: find out that a host put an older file back. Where every
worker has a seat in every round that shows at once, for the state has to be of the very
round before. Elsewhere a learner may be made to go on from an older state of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError, StorageError
from cloister.federation.learner_arrays import (
    Arrays,
    arrays_of,
    same_bytes,
    specs_of,
)
from cloister.federation.task import StatefulLearner
from cloister.plan.plan import Plan
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.mirror.subject import Kept, MirrorPlace

Guard: TypeAlias = Callable[[str], AbstractContextManager[None]]

# Counts a learner's states by when they were first sealed, also those sealed once more.
_ORDER: Final = "order"


class LearnerMemory:
    """Keeps a learner's states, and puts it back into one; used by its thread alone.

    Args:
        learner: A learner that has trained nothing yet.
        place: Where its states lie; its directory must exist.
        former: Where they lay under the plan before, of an amended plan.
        plan: Says how far back a server can ask.
        guard: Runs the task's code, told what it does.

    Raises:
        ConfigError: If the learner's state cannot be kept (``task-state``,
            ``mirror-arrays``).
        StorageError: If a file of states is there and cannot be used, or there is none
            and none can be made; see `StateMirror`.
    """

    def __init__(
        self,
        learner: StatefulLearner,
        place: MirrorPlace,
        *,
        former: MirrorPlace | None,
        plan: Plan,
        guard: Guard,
    ) -> None:
        self._learner = learner
        self._guard = guard
        # Rounds trained in the state that the learner is in; None while it is its own,
        # which need not be the one that it had at its first start.
        self._at: int | None = None
        rounds = plan.rounds
        self._every = rounds.quorum == "all" and rounds.sample is None
        first = self._state()
        self._specs = specs_of(first)
        # A worker that trained round n may have seen one round fewer completed, and a
        # new server be `mirror_every` behind that: it asks for a round whose beginning
        # is `mirror_every` + 1 before n. One slot more is the one that is written to.
        self._slots = rounds.mirror_every + 3
        at, found = 0, self._find(place)
        if found is None and former is not None:
            at = self._take_over(former, plan)
            first = self._state()
        self._mirror = found or StateMirror.create(
            place, self._specs, slots=self._slots
        )
        if found is None:
            self._at = at
            self._seal(at, first, order=0)

    def begin(self, round_number: int) -> None:
        """Puts the learner into its newest state before a round, if it is in another.

        Raises:
            ConfigError: If the task cannot.
            StorageError: If there is none from which the round can be trained
                (``learner-state-missing``), or it is damaged.
        """
        kept = self._before(round_number)
        if self._at != kept.round:
            self._restore(self._mirror, kept)

    def end(self, round_number: int) -> None:
        """Keeps the learner's state after a round; it is durable when this returns.

        Raises:
            ConfigError: If its arrays are not those of its first state
                (``task-state``).
            StorageError: If it cannot be written.
        """
        arrays = self._state()
        if specs_of(arrays) != self._specs:
            raise _changed()
        if not self._has(round_number, arrays):
            self._make_room(round_number)
            newest = max(it.counters[_ORDER] for it in self._mirror.kept)
            self._seal(round_number, arrays, order=newest + 1)
        self._at = round_number

    def close(self) -> None:
        """Gives the file back."""
        self._mirror.close()

    def _find(self, place: MirrorPlace) -> StateMirror | None:
        try:
            return StateMirror.open(place, self._specs, slots=self._slots)
        except StorageError as error:
            if error.code != "mirror-missing":
                raise
            return None

    def _take_over(self, former: MirrorPlace, plan: Plan) -> int:
        """Puts the learner into its state of the round that an amended plan begins at.

        Nothing is there of a learner that had no seat before that round. Returns the
        rounds trained in the state that it is in.
        """
        if plan.predecessor is None or (found := self._find(former)) is None:
            return 0
        with closing(found):
            reached = plan.predecessor.round
            kept = next((it for it in found.kept if it.round <= reached), None)
            if kept is None:
                raise _missing(reached + 1, found.kept, every=self._every)
            self._restore(found, kept)
            return kept.round

    def _restore(self, mirror: StateMirror, kept: Kept) -> None:
        arrays = self._read(mirror, kept)
        with self._guard("restoring the learner's state"):
            self._learner.restore(arrays)
        self._at = kept.round

    def _state(self) -> dict[str, NDArray[Any]]:
        with self._guard("reading the learner's state"):
            return arrays_of(self._learner.state())

    def _read(self, mirror: StateMirror, kept: Kept) -> dict[str, NDArray[Any]]:
        arrays = {it.name: np.empty(it.shape, it.dtype) for it in self._specs}
        mirror.restore(kept, arrays)
        return arrays

    def _seal(self, completed: int, arrays: Arrays, *, order: int) -> None:
        self._mirror.seal(completed, arrays, {_ORDER: order})
        self._mirror.commit()

    def _newest_first(self) -> list[Kept]:
        """Returns the states: what was trained last comes first."""
        kept = self._mirror.kept
        return sorted(kept, key=lambda it: it.counters[_ORDER], reverse=True)

    def _before(self, round_number: int) -> Kept:
        for kept in self._newest_first():
            if kept.round < round_number:
                if kept.round < round_number - 1 and self._every:
                    break
                return kept
        raise _missing(round_number, self._mirror.kept, every=self._every)

    def _has(self, round_number: int, arrays: Arrays) -> bool:
        """Returns whether this very state after a round lies there, to be gone on from.

        A round that is done again, from the same state with the same model, gives the
        same. To write it once more would cost the oldest state, and the server may fall
        behind again.
        """
        newest = self._newest_first()
        kept = next((it for it in newest if it.round <= round_number), None)
        if kept is None or kept.round != round_number:
            return False
        written = self._read(self._mirror, kept)
        return all(same_bytes(written[name], array) for name, array in arrays.items())

    def _make_room(self, round_number: int) -> None:
        """Has the next seal take the place of a state that counts no more, if any is.

        Those of this round and later ones do not, where the round was done again and
        came out otherwise. A seal takes the place of what was sealed first, so what
        lies before them is sealed once more. No state is missing at any moment: the one
        whose place is taken has been sealed anew.
        """
        kept = self._mirror.kept
        if all(it.round < round_number for it in kept):
            return
        for oldest in reversed(kept):
            if oldest.round >= round_number:
                return
            arrays = self._read(self._mirror, oldest)
            self._seal(oldest.round, arrays, order=oldest.counters[_ORDER])


def _changed() -> ConfigError:
    return ConfigError(
        "the learner's state has other arrays than at first",
        code="task-state",
        expected="the same names, shapes and types after every round",
        got="others",
        remedy="Correct state() in the task.",
    )


def _missing(round_number: int, kept: tuple[Kept, ...], *, every: bool) -> StorageError:
    rounds = ", ".join(str(it.round) for it in kept)
    return StorageError(
        f"the learner's state before round {round_number} is not here",
        code="learner-state-missing",
        expected=f"its state after round {round_number - 1}"
        + ("" if every else " or an earlier one"),
        got=f"states after rounds {rounds}" if kept else "none",
        remedy="Put this node's newest mirror back where it was. Without it this party"
        " cannot go on in this run: its learner's state was kept nowhere else. Where"
        " the run began anew, start this node with --fresh.",
    )
