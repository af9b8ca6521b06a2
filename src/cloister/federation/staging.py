"""Who may send its update now: two places, whatever the number of workers.

A whole update takes a model's memory until it is in the sum, so the server asks for one
only when it has room. Written out in `docs/spec/rounds.md`.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from typing_extensions import override

from cloister.errors import CloisterError, ProtocolError

PLACES = 2
# What may come of an update before its turn: enough to go on at once, and with the sum,
# a whole update and what gRPC holds for each of many workers less than three models.
EARLY_SHARE = 0.125
# Slower than this, with some seconds to begin, is too slow where others wait.
GRACE_SECONDS = 10.0
# How long who lost its place may take for its next chunk, with which it hears why.
LAST_CHUNK_SECONDS = 10.0
LEAST_BYTES_A_SECOND = 2**20


class Place:
    """One party's place for its update in this round.

    Args:
        party: Whose.
        limit: Ends the wait for it, or the transfer, when it expires.

    Attributes:
        turn: Set when the update may come whole, or not at all any more.
        since: When the place was taken, by the loop's clock; None while waiting.
        kept: Whether the update is whole; then the place is not lost any more.
        lost: Why the place is lost; None while it is not.
        drop: Drops what has come, when the place is lost.
    """

    __slots__ = ("_limit", "drop", "kept", "lost", "party", "since", "turn")

    def __init__(self, party: str, limit: asyncio.Timeout) -> None:
        self.party = party
        self.turn = asyncio.Event()
        self.since: float | None = None
        self.kept = False
        self.lost: CloisterError | None = None
        self.drop: Callable[[], None] | None = None
        self._limit = limit

    def keep(self) -> None:
        """The update is whole: the place is freed when it is in the sum."""
        self.kept = True
        self.drop = None

    def check(self) -> None:
        """Refuses the next chunk where the place is lost.

        Raises:
            CloisterError: If it is; the reason.
        """
        if self.lost is not None:
            raise self.lost

    def lose(self, error: CloisterError) -> bool:
        """Ends wait or transfer with `error`; returns whether it was under way.

        Who waits hears at once. Who sends hears with its next chunk, or when none has
        come for a while: cut off in the middle of one, it would not hear why.
        """
        if self.kept or self.lost is not None:
            return False
        self.lost = error
        if self.drop is not None:
            self.drop()
        self.turn.set()
        wait = 0.0 if self.since is None else LAST_CHUNK_SECONDS
        self._limit.reschedule(asyncio.get_running_loop().time() + wait)
        return self.since is not None


class Staging(ABC):
    """The places of one round.

    Args:
        early_bytes: How much of an update may come before its turn.
    """

    def __init__(self, *, early_bytes: int) -> None:
        self.early_bytes = early_bytes
        self._ended: CloisterError | None = None
        self._places: set[Place] = set()

    @asynccontextmanager
    async def place(self, party: str) -> AsyncIterator[Place]:
        """Waits for a place, and gives it up again unless it is kept.

        Raises:
            CloisterError: If the round ends, or the place is lost, before the update
                is whole.
        """
        if self._ended is not None:
            raise self._ended
        place: Place | None = None
        try:
            async with asyncio.timeout(None) as limit:
                place = Place(party, limit)
                self._places.add(place)
                try:
                    await self._enter(place)
                    place.since = asyncio.get_running_loop().time()
                    yield place
                finally:
                    self._places.discard(place)
                    if place.since is not None and not (place.kept or place.lost):
                        self._leave(place)
        except TimeoutError:
            if place is None or place.lost is None:
                raise
            raise place.lost from None

    def free(self, place: Place) -> None:
        """Frees the place of an update that is in the sum."""
        self._leave(place)

    def end(self, error: CloisterError) -> None:
        """Ends the round: whoever waits or sends is told `error`."""
        self._ended = error
        for place in list(self._places):
            self._lose(place, error)

    def _lose(self, place: Place, error: CloisterError) -> None:
        """Takes a place away; who waits for it need not wait for its last chunk."""
        if place.lose(error):
            self._leave(place)

    @abstractmethod
    async def _enter(self, place: Place) -> None:
        """Waits until the place is there."""

    @abstractmethod
    def _leave(self, place: Place) -> None:
        """Lets the next one in."""


class OrderedStaging(Staging):
    """Places in the order of the sum, which so is the plan's.

    The result is then the same to the bit whoever comes first. A party whose turn it
    is not waits with its update at home; so this is for a quorum of all, where the
    round needs everybody anyway.

    Args:
        order: The parties that contribute.
        update_bytes: Size of an update on the wire.
    """

    def __init__(self, order: tuple[str, ...], *, update_bytes: int) -> None:
        # As many as there are places need no sum beside them.
        early = 1.0 if len(order) <= PLACES else EARLY_SHARE
        super().__init__(early_bytes=int(update_bytes * early))
        self._index = {party: n for n, party in enumerate(order)}
        self._open = [asyncio.Event() for _ in order]
        self._freed = 0
        self._at: dict[int, Place] = {}
        for event in self._open[:PLACES]:
            event.set()

    @override
    async def _enter(self, place: Place) -> None:
        index = self._index[place.party]
        await self._open[index].wait()
        self._at[index] = place
        if index == self._freed:
            place.turn.set()

    @override
    def _leave(self, place: Place) -> None:
        index = self._index[place.party]
        if self._at.get(index) is place:
            del self._at[index]
        if not place.kept:
            return
        self._freed += 1
        for event in self._open[self._freed : self._freed + PLACES]:
            event.set()
        if (following := self._at.get(self._freed)) is not None:
            following.turn.set()


class SharedStaging(Staging):
    """Places in order of coming: nobody waits for who may never come.

    Args:
        update_bytes: Size of an update on the wire.
        allowed_seconds: Who takes longer loses its place if others wait for it; it may
            come again. Infinite where the round needs everybody, the slow ones too.
    """

    def __init__(self, *, update_bytes: int, allowed_seconds: float) -> None:
        super().__init__(early_bytes=update_bytes)
        self._room = asyncio.Semaphore(PLACES)
        self._allowed_seconds = allowed_seconds
        self._waiting = 0
        self._look: asyncio.TimerHandle | None = None

    @override
    def end(self, error: CloisterError) -> None:
        super().end(error)
        if self._look is not None:
            self._look.cancel()

    @override
    async def _enter(self, place: Place) -> None:
        # One wait, however long: who waits anew would go to the end of the queue.
        self._waiting += 1
        self._watch()
        try:
            await self._room.acquire()
        finally:
            self._waiting -= 1
        place.turn.set()

    @override
    def _leave(self, place: Place) -> None:
        self._room.release()

    def _watch(self) -> None:
        """While somebody waits, looks at each update when its time is over."""
        limited = self._allowed_seconds < math.inf
        if limited and self._waiting and self._look is None:
            loop = asyncio.get_running_loop()
            latest = loop.time() + self._allowed_seconds
            first = min((end for _, end in self._ends()), default=latest)
            self._look = loop.call_at(first, self._end_slow)

    def _end_slow(self) -> None:
        self._look = None
        if self._waiting:
            now = asyncio.get_running_loop().time()
            for place, end in self._ends():
                if now >= end:
                    self._lose(place, _too_slow(place.party, self._allowed_seconds))
            self._watch()

    def _ends(self) -> list[tuple[Place, float]]:
        """Returns until when each update on its way is not too slow."""
        return [
            (place, place.since + self._allowed_seconds)
            for place in self._places
            if place.since is not None and not place.kept and place.lost is None
        ]


def transfer_seconds(update_bytes: int) -> float:
    """Returns how long an update may take that others wait for."""
    return GRACE_SECONDS + update_bytes / LEAST_BYTES_A_SECOND


def _too_slow(party: str, allowed_seconds: float) -> ProtocolError:
    return ProtocolError(
        f"the update of {party!r} comes too slowly, and others wait",
        code="transfer-slow",
        expected=f"a whole update within {allowed_seconds:.0f} s",
        remedy="Send it again; it counts if it is whole before the round ends.",
    )
