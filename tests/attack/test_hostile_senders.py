"""An admitted party that does its worst on the training port stops itself alone.

Unless all must contribute: then it can keep the run from going on, as it could by
staying away; but what it sends and leaves open takes up no more than its share.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from tests.support.federation_in_memory import Federation
from tests.support.in_a_round import Scene, four_of, in_a_round
from tests.support.open_server import admitted_channel, refusal_code
from tests.support.plan_tree import Tree, with_quorum
from tests.support.running import Run
from tests.support.single_updates import (
    changed,
    constant,
    messages_of,
    next_model,
    others_held,
    updates_held,
)
from tests.support.training_calls import (
    contribute,
    receive,
    refused,
    send,
    send_update,
    until,
    wanted,
)

from cloister.federation import staging
from cloister.federation.call_limits import CALLS_OF_A_PARTY
from cloister.federation.staging import PLACES
from cloister.ratls.channels import MAX_CHUNK_BYTES
from cloister.ratls.refusal_log import TOLD_PER_MINUTE


def as_it_is(tree: Tree) -> Tree:
    return tree


@pytest.fixture(scope="module")
def all_of_four(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return four_of(tmp_path_factory.mktemp("all"), as_it_is)


@pytest.fixture(scope="module")
def two_of_four(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return four_of(tmp_path_factory.mktemp("two"), lambda tree: with_quorum(tree, 2))


async def all_train(scene: Scene, *names: str) -> None:
    update = constant(scene.port, 0.5)
    models = await asyncio.gather(*(scene[name].train(update) for name in names))
    assert {header.round for header, _ in models} == {2}


def test_who_takes_a_place_and_sends_nothing_loses_it(
    run: Run, two_of_four: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bob and carol have both places; one sends a half, the other nothing."""
    monkeypatch.setattr(staging, "GRACE_SECONDS", 0.2)

    async def story() -> None:
        async with in_a_round(two_of_four, tmp_path, features=100_000) as scene:
            port, update = scene.port, constant(scene.port, 0.5)
            held = []
            for name, count in (("bob", 1), ("carol", 0)):
                header, *chunks = scene[name].messages(update)
                call = contribute(scene[name].channel)
                await send(call, [header])
                await wanted(call)
                await send(call, chunks[:count])
                held.append(call)
            calls = [
                await scene[name].send(scene[name].messages(update))
                for name in ("alice", "dave")
            ]
            port.coordinator._expire(1)
            models = await asyncio.gather(*map(next_model, calls))
            assert {header.round for header, _ in models} == {2}
            codes = [await refused(call) for call in held]
            assert set(codes) <= {"transfer-slow", "update-late"}
            assert "transfer-slow" in codes
            [recorded] = port.audit.rounds
            assert [it.party for it in recorded.participants] == ["alice", "dave"]

    run(story())


def test_who_sends_nothing_where_all_must_holds_up_those_behind_it_and_no_memory(
    run: Run, all_of_four: Federation, tmp_path: Path
) -> None:
    """Bob is second; what he waits with is as if he had not come."""

    async def story() -> None:
        foreign = others_held()
        async with in_a_round(all_of_four, tmp_path) as scene:
            port, update = scene.port, constant(scene.port, 0.5)
            header, *chunks = scene["bob"].messages(update)
            slow = contribute(scene["bob"].channel)
            await send(slow, [header])
            await wanted(slow)
            others = asyncio.ensure_future(all_train(scene, "alice", "carol", "dave"))
            machine = port.coordinator._machine
            await until(lambda: "alice" in machine.counted)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(updates_held(but=foreign)) <= PLACES
            assert not others.done()
            await send(slow, chunks)
            await slow.done_writing()
            await others
            assert (await next_model(slow))[0].round == 2
            assert port.refusals() == []

    run(story())


def test_a_flood_of_headers_costs_a_line_each_and_not_many(
    run: Run, two_of_four: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with in_a_round(two_of_four, tmp_path) as scene:
            port, bob = scene.port, scene["bob"]
            good = bob.messages(constant(port, 0.5))
            for number in range(3 * TOLD_PER_MINUTE):
                call = contribute(bob.channel)
                await send(call, changed(good, round=2 + number)[:1])
                assert await refused(call) == "update-round"
            await all_train(scene, *scene.parties)
            assert len(port.events("call-refused")) == TOLD_PER_MINUTE

    run(story())


def test_chunks_before_they_are_wanted_are_the_same_chunks(
    run: Run, all_of_four: Federation, tmp_path: Path
) -> None:
    """Dave, the last in order, sends all at once: it waits on its way."""

    async def story() -> None:
        foreign = others_held()
        async with in_a_round(all_of_four, tmp_path) as scene:
            port, dave = scene.port, scene["dave"]
            before = port.coordinator.model.parameters.copy()
            call = contribute(dave.channel)
            await send(call, dave.messages(constant(port, 0.5)))
            await call.done_writing()
            assert updates_held(but=foreign) == []
            await all_train(scene, "alice", "bob", "carol")
            await wanted(call)
            assert (await next_model(call))[0].round == 2
            assert (port.coordinator.model.parameters == before - 0.5).all()

    run(story())


@pytest.mark.parametrize("first", [True, False])
def test_a_message_beyond_all_limits_ends_its_own_call(
    run: Run, all_of_four: Federation, tmp_path: Path, *, first: bool
) -> None:
    async def story() -> None:
        foreign = others_held()
        async with in_a_round(all_of_four, tmp_path) as scene:
            port, bob = scene.port, scene["bob"]
            call = contribute(bob.channel)
            with pytest.raises(grpc.aio.AioRpcError):  # noqa: PT012 - any may be it
                if not first:
                    await send(call, bob.messages(constant(port, 0.5))[:1])
                    await wanted(call)
                await call.write(bytes(MAX_CHUNK_BYTES + 1))
                await call.read()
            await until(lambda: updates_held(but=foreign) == [])
            await all_train(scene, *scene.parties)

    run(story())


def test_a_node_that_was_replaced_disturbs_the_new_one_no_more(
    run: Run, two_of_four: Federation, tmp_path: Path
) -> None:
    """Bob's old node has its place, half its update, and all calls it may have."""

    async def story() -> None:
        async with in_a_round(two_of_four, tmp_path, features=100_000) as scene:
            port, old = scene.port, scene["bob"]
            update = constant(port, 0.5)
            header, *chunks = old.messages(update)
            half = contribute(old.channel)
            await send(half, [header])
            await wanted(half)
            await send(half, chunks[:1])
            _ = [receive(port, old.channel) for _ in range(CALLS_OF_A_PARTY)]
            node = two_of_four.node("bob", epoch=2)
            async with admitted_channel(port, node) as channel:
                call = contribute(channel)
                await send_update(call, messages_of(port, node, update))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await next_model(half)
                assert refusal_code(caught.value) in {"epoch-old", "not-admitted"}
                await all_train(scene, "alice", "carol", "dave")
                assert (await next_model(call))[0].round == 2

    run(story())
