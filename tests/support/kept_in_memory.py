"""A server's state kept in memory, where what is tested is not the keeping."""

from __future__ import annotations

import hashlib

import numpy as np
from typing_extensions import override

from cloister.federation.model_state import ModelState
from cloister.federation.state import StateKeeper, Witness
from cloister.storage.mirror.subject import Kept


class KeptInMemory(StateKeeper):
    """Keeps the newest state, and what was done, in order.

    Args:
        state: The state.
        completed: Rounds completed in it.
        chosen: Whom a server before this one chose for the next round.

    Attributes:
        done: What was asked of it, and of which round.
        sealed_heads: The head that was sealed with each state, by round.
        choices: Who was chosen, by round.
    """

    def __init__(
        self,
        state: ModelState,
        *,
        completed: int = 0,
        chosen: tuple[str, ...] = (),
    ) -> None:
        self.done: list[tuple[str, int]] = []
        self.sealed_heads: dict[int, bytes] = {}
        self.choices: dict[int, tuple[str, ...]] = {completed + 1: chosen}
        self._state = state
        self._sealed = self._kept(completed)
        self._newest = self._sealed

    @property
    @override
    def newest(self) -> Kept:
        return self._newest

    @override
    def seal(self, completed: int, *, head: bytes) -> Kept:
        self.done.append(("seal", completed))
        self.sealed_heads[completed] = head
        self._sealed = self._kept(completed)
        return self._sealed

    @override
    def commit(self) -> None:
        self.done.append(("commit", self._sealed.round))
        self._newest = self._sealed

    @override
    def choose(self, round_number: int, parties: tuple[str, ...]) -> None:
        self.done.append(("choose", round_number))
        self.choices[round_number] = parties

    @override
    def cohort(self) -> tuple[str, ...]:
        return self.choices.get(self._newest.round + 1, ())

    def _kept(self, completed: int) -> Kept:
        return Kept(
            round=completed,
            counters={},
            digest=digest_of(self._state, completed),
            slot=completed % 2,
        )


class KnownAtOnce(Witness):
    """A party that knows of each state as soon as it is told.

    Attributes:
        states: What it was told, in order.
    """

    def __init__(self) -> None:
        self.states: list[Kept] = []

    @override
    async def told(self, kept: Kept) -> None:
        self.states.append(kept)


def digest_of(state: ModelState, completed: int) -> bytes:
    """Returns what `KeptInMemory` knows a state by."""
    digest = hashlib.sha256(str(completed).encode())
    for name, array in state.arrays().items():
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.digest()
