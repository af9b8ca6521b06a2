"""What one node leaves open on the training port takes nobody else's room."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation
from tests.support.in_a_round import Scene, four_of, in_a_round
from tests.support.open_server import OpenServer, admitted_channel
from tests.support.running import Run
from tests.support.single_updates import constant, next_model
from tests.support.training_calls import (
    Contributing,
    Receiving,
    contribute,
    model_of,
    receive,
    until,
)

from cloister.federation import call_limits
from cloister.federation.call_limits import CALLS_OF_A_PARTY, CHUNKS_OF_A_PARTY
from cloister.ratls.refusal_log import TOLD_PER_MINUTE

# A model that does not fit into what a connection takes for who reads nothing.
LARGE = 2_000_000
SOON = 5.0
HOUR = 3600.0


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return four_of(tmp_path_factory.mktemp("four"), lambda tree: tree)


async def all_train(scene: Scene, *names: str) -> None:
    update = constant(scene.port, 0.5)
    models = await asyncio.gather(*(scene[name].train(update) for name in names))
    assert {header.round for header, _ in models} == {2}


def has_calls(port: OpenServer, party: str, count: int) -> bool:
    """Returns whether the server is at work on so many calls of a party."""
    share = port.ports._training_service._limits._shares.get(party)
    return share is not None and share.calls == count


def test_a_thousand_calls_of_one_party_are_a_few(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with in_a_round(four, tmp_path) as scene:
            port, bob = scene.port, scene["bob"]
            # Of this round's model bob has his part; these would wait for the next.
            own = await bob.send(bob.messages(constant(port, 0.5)))
            calls: list[Receiving | Contributing] = []
            calls += [receive(port, bob.channel) for _ in range(500)]
            calls += [contribute(bob.channel) for _ in range(500)]
            service = port.ports._training_service
            await until(lambda: port.events("call-refused") != [])
            assert service._limits._shares["bob"].calls == CALLS_OF_A_PARTY
            await all_train(scene, "alice", "carol", "dave")
            assert (await next_model(own))[0].round == 2
            for call in calls:
                call.cancel()
        told = port.events("call-refused")
        assert {event["code"] for event in told} == {"calls-too-many"}
        assert len(told) == TOLD_PER_MINUTE

    run(story())


def test_who_asks_for_many_models_and_takes_none_leaves_room_for_all_others(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    """Chunks go out so many at once; bob's calls would hold all of these."""

    async def story() -> None:
        async with in_a_round(four, tmp_path, features=LARGE) as scene:
            port, bob = scene.port, scene["bob"]
            calls = [receive(port, bob.channel) for _ in range(CALLS_OF_A_PARTY)]
            limits = port.ports._training_service._limits
            await until(partial(has_calls, port, "bob", CALLS_OF_A_PARTY))
            await until(limits._shares["bob"].chunks.locked)
            async with asyncio.timeout(SOON):
                for name in ("alice", "carol", "dave"):
                    assert await model_of(receive(port, scene[name].channel))
            for call in calls:
                call.cancel()
            # Nor is it a mistake of the program that somebody goes away.
            await until(lambda: "bob" not in limits._shares)
            assert port.refusals() == []
            assert await model_of(receive(port, bob.channel))

    run(story())


def test_displaced_nodes_that_take_nothing_share_what_their_party_may_hold(
    run: Run, four: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many nodes of bob's as could hold all chunks, had each a share of its own."""
    monkeypatch.setattr(call_limits, "CHUNKS_AT_ONCE", 2 * CHUNKS_OF_A_PARTY)
    monkeypatch.setattr(call_limits, "HELD_SECONDS", HOUR)

    async def story() -> None:
        async with (
            in_a_round(four, tmp_path, features=LARGE) as scene,
            AsyncExitStack() as stack,
        ):
            port = scene.port
            limits = port.ports._training_service._limits
            held: list[Receiving] = []
            opened = 0
            for epoch in range(2, 5):
                node = four.node("bob", epoch=epoch)
                channel = await stack.enter_async_context(admitted_channel(port, node))
                held += [receive(port, channel) for _ in range(CHUNKS_OF_A_PARTY)]
                await until(lambda: limits._chunks._value == CHUNKS_OF_A_PARTY)
                opened += CHUNKS_OF_A_PARTY
                await until(partial(has_calls, port, "bob", opened))
            async with asyncio.timeout(SOON):
                for name in ("alice", "carol", "dave"):
                    assert await model_of(receive(port, scene[name].channel))
            for call in held:
                call.cancel()

    run(story())


def test_parties_that_take_nothing_hold_up_the_others_for_a_moment_only(
    run: Run, four: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bob and carol hold all chunks there may be at once, until they count no more."""
    monkeypatch.setattr(call_limits, "CHUNKS_AT_ONCE", 2 * CHUNKS_OF_A_PARTY)
    monkeypatch.setattr(call_limits, "HELD_SECONDS", 0.05)

    async def story() -> None:
        async with in_a_round(four, tmp_path, features=LARGE) as scene:
            port = scene.port
            held = [
                receive(port, scene[name].channel)
                for name in ("bob", "carol")
                for _ in range(CHUNKS_OF_A_PARTY)
            ]
            for call in held:
                await call.read()
            shares = port.ports._training_service._limits._shares
            chunks = port.ports._training_service._limits._chunks
            for name in ("bob", "carol"):
                await until(shares[name].chunks.locked)
            async with asyncio.timeout(SOON):
                for name in ("alice", "dave"):
                    assert await model_of(receive(port, scene[name].channel))
            await until(lambda: chunks._value == call_limits.CHUNKS_AT_ONCE)
            # What they hold still counts for them.
            assert shares["bob"].chunks.locked()
            for call in held:
                call.cancel()
            await until(lambda: shares == {})
            assert chunks._value == call_limits.CHUNKS_AT_ONCE

    run(story())
