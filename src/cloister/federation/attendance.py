"""Who is there: the workers that have come, and when one of them was last heard."""

from __future__ import annotations

import asyncio
import contextlib
import time

# How long a run that has failed waits for workers to be told.
_FAREWELL_SECONDS = 1.0


class Attendance:
    """The workers of a run, as the server notices them."""

    def __init__(self) -> None:
        self._joined: set[str] = set()
        # Whom nothing needs to be told any more: they know, or have finished.
        self._content: set[str] = set()
        self._changed = asyncio.Event()
        self._touched = time.monotonic()

    def touch(self) -> None:
        """Notes that something arrived; the run is alive."""
        self._touched = time.monotonic()

    def join(self, party: str) -> int:
        """Notes a party; returns how many have come so far, or 0 if it had before."""
        if party in self._joined:
            return 0
        self._joined.add(party)
        return len(self._joined)

    def content(self, *parties: str) -> None:
        """Notes that `parties` need not be told that the run is over."""
        self._content.update(parties)
        self._changed.set()

    async def silence(self, over: asyncio.Event, *, patience_seconds: float) -> bool:
        """Waits until the run is over, or nothing has arrived for too long.

        Args:
            over: Set when the run is over.
            patience_seconds: The longest silence.

        Returns:
            Whether the run has been silent for that long.
        """
        quiet = time.monotonic() - self._touched
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, patience_seconds - quiet)):
                await over.wait()
        return (
            not over.is_set() and time.monotonic() - self._touched >= patience_seconds
        )

    async def farewell(self) -> None:
        """Waits, not for long, until every worker was told that the run is over.

        One that computes is told at its next call.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                while self._joined - self._content:
                    self._changed.clear()
                    await self._changed.wait()
