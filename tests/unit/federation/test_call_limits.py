from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from tests.support.rounds_story import turns
from tests.support.running import Run, until

from cloister.errors import ProtocolError
from cloister.federation import call_limits as module
from cloister.federation.call_limits import (
    CALLS_OF_A_PARTY,
    CHUNKS_AT_ONCE,
    CHUNKS_OF_A_PARTY,
    CallLimits,
)
from cloister.ratls.admission_table import Peer
from cloister.ratls.identity import new_identity
from cloister.ratls.proofs import Identified


def peer(party: str) -> Peer:
    """Returns a node of a party; each has a key of its own."""
    return Peer(
        role="worker",
        party=party,
        epoch=1,
        tls_key=new_identity().tls_spki,
        encryption_key=bytes(32),
        standing=Identified(party_key="ed25519:" + 64 * "0"),
    )


class Senders:
    """Chunks on their way out, which nobody takes."""

    def __init__(self, limits: CallLimits) -> None:
        self._limits = limits
        self._over = asyncio.Event()
        self.sending: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self, *parties: str) -> None:
        self.tasks += [asyncio.ensure_future(self._send(party)) for party in parties]
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self) -> None:
        self._over.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert self._limits._chunks._value == CHUNKS_AT_ONCE
        assert self._limits._shares == {}

    async def _send(self, party: str) -> None:
        node = peer(party)
        with self._limits.call(node):
            async with self._limits.chunk(node):
                self.sending.append(party)
                await self._over.wait()


def test_calls_are_counted_by_party_whichever_of_its_nodes_calls() -> None:
    limits = CallLimits()
    with ExitStack() as calls:
        for _ in range(CALLS_OF_A_PARTY):
            calls.enter_context(limits.call(peer("bob")))
        with pytest.raises(ProtocolError) as caught, limits.call(peer("bob")):
            pass
        assert caught.value.code == "calls-too-many"
        with limits.call(peer("alice")):
            pass
    assert limits._shares == {}
    with limits.call(peer("bob")):
        pass


def test_chunks_are_counted_by_party_whichever_of_its_nodes_takes_them(
    run: Run,
) -> None:
    async def story() -> None:
        senders = Senders(CallLimits())
        await senders.begin(*["bob"] * CHUNKS_AT_ONCE, "alice")
        assert senders.sending == ["bob"] * CHUNKS_OF_A_PARTY + ["alice"]
        for task in senders.tasks[:CHUNKS_OF_A_PARTY]:
            task.cancel()
        await turns(lambda: senders.sending.count("bob") == 2 * CHUNKS_OF_A_PARTY)
        await senders.end()

    run(story())


def full() -> list[str]:
    """Returns whose chunks are all that may be on their way."""
    names = [f"party-{n}" for n in range(CHUNKS_AT_ONCE // CHUNKS_OF_A_PARTY)]
    return [name for name in names for _ in range(CHUNKS_OF_A_PARTY)]


def test_no_more_chunks_than_there_may_be_are_begun_at_once(run: Run) -> None:
    async def story() -> None:
        senders = Senders(CallLimits())
        await senders.begin(*full(), "alice")
        assert "alice" not in senders.sending
        senders.tasks[-1].cancel()  # who waits and goes away takes nothing along
        await asyncio.wait(senders.tasks[-1:])
        await senders.begin("erin")
        senders.tasks[0].cancel()
        await turns(lambda: "erin" in senders.sending)
        await senders.end()

    run(story())


def test_chunks_that_are_not_taken_count_for_their_parties_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_SECONDS", 0.01)

    async def story() -> None:
        limits = CallLimits()
        senders = Senders(limits)
        await senders.begin(*full(), "party-0")
        await until(lambda: limits._chunks._value == CHUNKS_AT_ONCE)
        await senders.begin("alice")
        assert senders.sending == [*full(), "alice"]
        await senders.end()  # and none is given back twice

    run(story())
