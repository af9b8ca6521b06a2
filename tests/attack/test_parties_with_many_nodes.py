"""A party starts one node after another, and lets each begin to send an update.

Its custodian gives every one the next epoch, and nothing attests a party that is
admitted by its key. What it takes up of the server must not grow with its nodes.
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.held_updates import held_bytes
from tests.support.open_server import OpenServer, admitted_channel, open_server
from tests.support.plan_tree import by_identity
from tests.support.running import Run, until
from tests.support.training_calls import (
    Contributing,
    begin_round,
    contribute,
    model_of,
    refused,
    send,
    send_update,
    update_for,
)

from cloister.ratls.admission_table import Peer
from cloister.ratls.enrolling import enrol
from cloister.ratls.node import Node

FEATURES = 300_000  # an update of twelve chunks
NODES = 6
LOG = ["logs/aggregator.jsonl"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A federation in which nothing says what bob's nodes run."""
    return make_federation(
        tmp_path_factory.mktemp("mixed"), change=lambda tree: by_identity(tree, "bob")
    )


async def begin_update(
    port: OpenServer, channel: grpc.aio.Channel, node: Node
) -> Contributing:
    """Sends the first of an update's chunks, and sees it arrive."""
    before = port.coordinator.traffic.received
    messages = update_for(port, node)[:2]
    call = contribute(channel)
    await send(call, messages)
    await until(lambda: port.coordinator.traffic.received > before)
    return call


def test_a_party_with_many_nodes_holds_one_buffer_and_the_newest_node_counts(
    run: Run, mixed: Federation, tmp_path: Path
) -> None:
    async def story() -> OpenServer:
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(
                open_server(mixed.node("aggregator"), tmp_path, features=FEATURES)
            )
            nodes = [mixed.node(party) for party in ("alice", "bob")]
            alice, first = [
                await stack.enter_async_context(admitted_channel(port, node))
                for node in nodes
            ]
            await begin_round(port, alice, first)
            gc.collect()
            assert held_bytes() == 0
            newest = nodes[1]
            ended, call = [], await begin_update(port, first, newest)
            for epoch in range(2, NODES + 1):
                newest = mixed.node("bob", epoch=epoch)
                channel = await stack.enter_async_context(
                    admitted_channel(port, newest)
                )
                ended.append(call)
                call = await begin_update(port, channel, newest)
                assert held_bytes() == port.coordinator.wire.chunk_bytes
            for former in ended:
                assert await refused(former) == "epoch-old"
            assert list(port.coordinator._machine.missing) == ["alice", "bob"]

            # What the newest node goes on to send counts, and so does the round.
            await send(call, update_for(port, newest)[2:])
            await call.done_writing()
            other = contribute(alice)
            await send_update(other, update_for(port, nodes[0]))
            assert await model_of(call) == await model_of(other)
            assert held_bytes() == 0
            return port

    port = run(story())
    assert port.admitted() == [("alice", 1), ("bob", NODES)]
    assert port.refusals() == (NODES - 1) * ["epoch-old"]
    assert [line["round"] for line in port.events("round")] == [1]
    assert port.files() == LOG


def test_a_former_node_whose_header_comes_late_ends_nothing_of_the_newer(
    run: Run, mixed: Federation, tmp_path: Path
) -> None:
    async def story() -> OpenServer:
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(
                open_server(mixed.node("aggregator"), tmp_path)
            )
            nodes = [mixed.node(party) for party in ("alice", "bob")]
            alice, former = [
                await stack.enter_async_context(admitted_channel(port, node))
                for node in nodes
            ]
            await begin_round(port, alice, former)
            late = contribute(former)
            # Its call is admitted, and says nothing yet.
            await late.wait_for_connection()
            newest = mixed.node("bob", epoch=2)
            newer = await stack.enter_async_context(admitted_channel(port, newest))
            message, *chunks = update_for(port, newest)
            call = contribute(newer)
            await send(call, [message])
            await until(lambda: bool(port.ports._training_service._sending))
            await send(late, [message])
            assert await refused(late) == "not-admitted"
            other = contribute(alice)
            await send(other, update_for(port, nodes[0]))
            await send(call, chunks)
            for it in (call, other):
                await it.done_writing()
            assert await model_of(call) == await model_of(other)
            return port

    port = run(story())
    assert port.refusals() == ["not-admitted"]
    assert port.files() == LOG


def test_a_newer_node_waits_until_the_others_buffer_is_free(
    run: Run, mixed: Federation, tmp_path: Path
) -> None:
    """Two that come at once behind a third still hold one buffer at a time."""

    async def story() -> None:
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(
                open_server(mixed.node("aggregator"), tmp_path, features=FEATURES)
            )
            service = port.ports._training_service
            peers: list[Peer] = []
            for epoch in (1, 2, 3):
                await enrol(mixed.node("bob", epoch=epoch), port.enrolment)
                peers += port.ports.table.parties()
            held: list[int] = []
            most = 0

            async def hold(number: int) -> None:
                nonlocal most
                async with service._only_one(peers[number]):
                    held.append(number)
                    most = max(most, len(held))
                    try:
                        await asyncio.Event().wait()
                    finally:
                        held.remove(number)

            tasks = [asyncio.ensure_future(hold(number)) for number in range(3)]
            await until(lambda: held == [2])
            assert most == 1
            tasks[2].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert service._sending == {}

    run(story())
