"""What one party may take up of what all need: calls, and chunks on their way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from cloister.errors import ProtocolError
from cloister.ratls.admission_table import Peer

# Open calls of one party. It needs one; others may be of connections that broke, or of
# nodes that were replaced, which is noticed late. Each may hold a message of 4 MiB that
# does not come to its end.
CALLS_OF_A_PARTY = 16
# Chunks on their way out at once, whatever the number of workers.
CHUNKS_AT_ONCE = 16
# Of these, to one party: its present call, and one of a connection that broke.
CHUNKS_OF_A_PARTY = 2
# A chunk that takes longer counts for its party alone. So many parties that take no
# byte of what they asked for leave room for all others.
HELD_SECONDS = 1.0


@dataclass(slots=True)
class _Share:
    """What one party takes up."""

    calls: int = 0
    chunks: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(CHUNKS_OF_A_PARTY)
    )


class CallLimits:
    """Counts what is taken up."""

    def __init__(self) -> None:
        self._shares: dict[str, _Share] = {}
        self._chunks = asyncio.Semaphore(CHUNKS_AT_ONCE)

    @contextmanager
    def call(self, peer: Peer) -> Iterator[None]:
        """Counts a call of a party as long as it is open.

        Raises:
            ProtocolError: If the party has too many.
        """
        share = self._shares.setdefault(peer.party, _Share())
        if share.calls >= CALLS_OF_A_PARTY:
            raise ProtocolError(
                f"{peer.party!r} has too many calls open",
                code="calls-too-many",
                expected=f"at most {CALLS_OF_A_PARTY} at once",
                remedy="Wait for an answer, or end a call.",
            )
        share.calls += 1
        try:
            yield
        finally:
            share.calls -= 1
            if not share.calls:
                del self._shares[peer.party]

    @asynccontextmanager
    async def chunk(self, peer: Peer) -> AsyncIterator[None]:
        """Waits until a chunk may be sent in one of the party's calls (`call`)."""
        async with self._shares[peer.party].chunks:
            await self._chunks.acquire()
            held = True

            def free() -> None:
                nonlocal held
                if held:
                    held = False
                    self._chunks.release()

            timer = asyncio.get_running_loop().call_later(HELD_SECONDS, free)
            try:
                yield
            finally:
                timer.cancel()
                free()
