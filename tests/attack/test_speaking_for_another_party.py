"""An admitted party that would like to be another one, or more than one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import msgspec
import pytest
from tests.support.federation_in_memory import Federation
from tests.support.open_server import (
    admitted_channel,
    open_server,
    refusal_code,
)
from tests.support.running import Run
from tests.support.training_calls import (
    begin_round,
    contribute,
    final_report,
    finish,
    layout_of_run,
    receive,
    refused,
    report,
    send,
    send_update,
    until,
    update_for,
)

from cloister.errors import RefusedByPeer
from cloister.federation.messages import ModelRequest, encode_header
from cloister.ratls.enrolling import enrol
from cloister.ratls.node import Node

FEATURES = 100_000  # an update of two chunks


def test_a_party_joins_for_itself_only(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
        ):
            calls = [receive(port, channel) for _ in range(3)]
            await until(lambda: len(port.coordinator._attendance._joined) > 0)
            # However often alice asks, bob has not come, and no model goes out.
            assert port.coordinator._attendance._joined == {"alice"}
            assert port.coordinator._published is None
            for call in calls:
                call.cancel()
            assert port.coordinator.traffic.sent == 0

    run(story())


def test_a_second_update_does_not_count_for_anybody(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
            admitted_channel(port, bob) as other,
        ):
            await begin_round(port, channel, other)
            first = contribute(channel)
            await send_update(first, update_for(port, alice))
            await until(lambda: port.coordinator._machine.missing == ("bob",))
            second = contribute(channel)
            await send(second, update_for(port, alice)[:1])
            assert await refused(second) == "update-repeated"

            assert port.coordinator._machine.missing == ("bob",)
            [line] = port.events("call-refused")
            assert "'alice'" in str(line["reason"])
            first.cancel()

    run(story())


def test_two_updates_at_once_are_one_too_many(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path, features=FEATURES) as port,
            admitted_channel(port, alice) as channel,
            admitted_channel(port, bob) as other,
        ):
            await begin_round(port, channel, other)
            header, chunk, last = update_for(port, alice)
            first = contribute(channel)
            await send(first, [header, chunk])
            await until(lambda: port.coordinator.traffic.received == len(chunk))
            second = contribute(channel)
            await send(second, [header, chunk])
            # As after a network that was cut: the one that came last is the one.
            assert await refused(first) == "update-repeated"
            assert port.coordinator._machine.missing == ("alice", "bob")
            await send(second, [last])
            await second.done_writing()
            await until(lambda: port.coordinator._machine.missing == ("bob",))
            second.cancel()

    run(story())


@pytest.mark.parametrize("name", ["party", "peer", "role"])
def test_no_message_has_a_place_for_a_party(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path, name: str
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
            admitted_channel(port, bob) as other,
        ):
            await begin_round(port, channel, other)
            header = msgspec.msgpack.decode(update_for(port, alice)[0])
            call = contribute(channel)
            await send(call, [msgspec.msgpack.encode({**header, name: "bob"})])
            assert await refused(call) == "header-malformed"
            assert port.coordinator._machine.missing == ("alice", "bob")

    run(story())


def test_nobody_finishes_before_training_is_over(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
            admitted_channel(port, bob) as other,
        ):
            await begin_round(port, channel, other)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await finish(channel, final_report(port, alice, report(accuracy=1.0)))
            assert refusal_code(caught.value) == "finish-early"
            assert port.coordinator.metrics is None

    run(story())


def test_a_request_in_another_methods_place_is_refused(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
        ):
            request = encode_header(ModelRequest(layout=layout_of_run(port)))
            call = contribute(channel)
            await send(call, [request])
            assert await refused(call) == "header-malformed"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await finish(channel, ModelRequest(layout=layout_of_run(port)))
            assert refusal_code(caught.value) == "header-malformed"

    run(story())


def test_a_party_enrols_under_its_own_name_only(
    run: Run, federation: Federation, server: Node, alice: Node, tmp_path: Path
) -> None:
    """Alice is genuine and warranted; she says that she is bob."""

    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            await enrol(federation.node("bob"), port.enrolment)
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(replace(alice, party="bob"), port.enrolment)
            assert caught.value.code == "warrant-signature"
            assert port.admitted() == [("bob", 1)]
            assert port.refusals() == ["warrant-signature"]

    run(story())
