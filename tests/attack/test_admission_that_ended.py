"""Nodes that were admitted once. An open channel outlives what admitted it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from tests.support.federation_in_memory import START, Federation, HandClock
from tests.support.held_updates import held_bytes
from tests.support.open_server import (
    OpenServer,
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
    model_of,
    receive,
    refused,
    report,
    send,
    send_update,
    until,
    update_for,
)

from cloister.errors import RefusedByPeer
from cloister.federation.layout import ModelBuffer
from cloister.federation.line import Line
from cloister.federation.messages import UpdateHeader, decode_header
from cloister.ratls.enrolling import enrol
from cloister.ratls.node import Node

ADMISSION_LIFE = timedelta(hours=12)  # the plan's default
# TLS looks at the real clock, whatever the server's own one says: from here, an
# admission lapses at a time at which certificates of both ends are still good for TLS,
# however long the suite has run.
EARLY = START - ADMISSION_LIFE + timedelta(hours=1)
FEATURES = 100_000  # an update of two chunks
LARGE = 1_200_000  # of five


def received(port: OpenServer) -> int:
    return port.coordinator.traffic.received


def test_a_call_after_the_admission_lapsed_is_refused(
    run: Run, server: Node, alice: Node, clock: HandClock, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
        ):
            clock.forward(ADMISSION_LIFE)
            assert await refused(receive(port, channel)) == "admission-lapsed"
            assert await refused(contribute(channel)) == "admission-lapsed"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await finish(channel, final_report(port, alice, report()))
            assert refusal_code(caught.value) == "admission-lapsed"

            assert port.refusals() == 3 * ["admission-lapsed"]
            assert port.coordinator.traffic.sent == 0
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


def test_who_sends_a_large_update_at_once_after_a_lapse_hears_that_it_lapsed(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path
) -> None:
    """Only then does it attest again. Its chunks are on their way already."""

    async def story() -> None:
        async with (
            open_server(server, tmp_path, features=LARGE) as port,
            admitted_channel(port, alice) as channel,
            admitted_channel(port, bob) as other,
        ):
            await begin_round(port, channel, other)
            out = port.coordinator._published
            assert out is not None
            assert out.header.at_once
            update = ModelBuffer(port.coordinator.model.layout)
            peer = next(iter(port.ports.table._by_key.values())).peer
            line = Line(
                channel,
                peer,
                model=ModelBuffer(update.layout),
                wire=port.coordinator.wire,
            )
            header = decode_header(update_for(port, alice)[0], UpdateHeader)
            port.ports.table.advance(10**6)
            for _ in range(40):
                with pytest.raises(RefusedByPeer) as caught:
                    await line.contribute(header, update, at_once=True)
                assert caught.value.code == "admission-lapsed"
            assert received(port) == 0
            assert held_bytes() == 0

    run(story())


def test_a_call_that_waits_while_its_admission_lapses_gets_no_model(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        clock = HandClock(EARLY)
        server = federation.node("aggregator", clock=clock)
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, federation.node("alice", clock=clock)) as waiting,
        ):
            call = receive(port, waiting)
            await until(lambda: port.coordinator._attendance._joined == {"alice"})
            clock.forward(ADMISSION_LIFE)
            late = federation.node("bob", clock=clock)
            async with admitted_channel(port, late) as channel:
                assert await model_of(receive(port, channel))
                assert await refused(call) == "admission-lapsed"
            size = port.coordinator.model.layout.size_bytes
            assert port.coordinator.traffic.sent == size

    run(story())


def test_a_message_after_the_admission_lapsed_is_refused(
    run: Run,
    server: Node,
    alice: Node,
    bob: Node,
    clock: HandClock,
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path, features=FEATURES) as port,
            admitted_channel(port, alice) as channel,
            admitted_channel(port, bob) as other,
        ):
            await begin_round(port, channel, other)
            header, first, last = update_for(port, alice)
            call = contribute(channel)
            await send(call, [header, first])
            await until(lambda: received(port) == len(first))
            clock.forward(ADMISSION_LIFE)
            await send(call, [last])
            assert await refused(call) == "admission-lapsed"

            assert received(port) == len(first)
            assert port.coordinator._machine.missing == ("alice", "bob")
            assert port.refusals() == ["admission-lapsed"]

    run(story())


def test_a_message_after_a_newer_node_came_is_refused(
    run: Run,
    federation: Federation,
    server: Node,
    alice: Node,
    bob: Node,
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path, features=FEATURES) as port,
            admitted_channel(port, alice) as channel,
            admitted_channel(port, bob) as other,
        ):
            await begin_round(port, channel, other)
            header, first, last = update_for(port, alice)
            call = contribute(channel)
            await send(call, [header, first])
            await until(lambda: received(port) == len(first))
            await enrol(federation.node("alice", epoch=2), port.enrolment)
            await send(call, [last])
            assert await refused(call) == "not-admitted"
            assert await refused(receive(port, channel)) == "not-admitted"

            assert port.admitted() == [("bob", 1), ("alice", 2)]
            assert port.coordinator._machine.missing == ("alice", "bob")

    run(story())


def test_a_whole_update_does_not_count_if_its_node_was_replaced_before_its_end(
    run: Run,
    federation: Federation,
    server: Node,
    alice: Node,
    bob: Node,
    tmp_path: Path,
) -> None:
    """The last byte has come, but the stream is left open until somebody newer is."""

    async def story() -> None:
        async with (
            open_server(server, tmp_path, features=FEATURES) as port,
            admitted_channel(port, alice) as channel,
            admitted_channel(port, bob) as other,
        ):
            await begin_round(port, channel, other)
            update = update_for(port, alice)
            call = contribute(channel)
            await send(call, update)
            size = port.coordinator.wire.size_bytes
            await until(lambda: received(port) == size)
            await enrol(federation.node("alice", epoch=2), port.enrolment)
            await call.done_writing()
            assert await refused(call) == "not-admitted"
            assert port.coordinator._machine.missing == ("alice", "bob")

    run(story())


def test_a_stalled_stream_of_the_old_node_does_not_keep_the_new_one_out(
    run: Run,
    federation: Federation,
    server: Node,
    alice: Node,
    bob: Node,
    tmp_path: Path,
) -> None:
    async def story() -> None:
        newer = federation.node("alice", epoch=2)
        async with (
            open_server(server, tmp_path, features=FEATURES) as port,
            admitted_channel(port, alice) as channel,
            admitted_channel(port, bob) as other,
        ):
            await begin_round(port, channel, other)
            header, first, _ = update_for(port, alice)
            stalled = contribute(channel)
            await send(stalled, [header, first])
            await until(lambda: received(port) == len(first))
            async with admitted_channel(port, newer) as again:
                await begin_round(port, again)
                call = contribute(again)
                await send_update(call, update_for(port, newer))
                await until(lambda: port.coordinator._machine.missing == ("bob",))
            # It was ended, and not only passed by: its buffer is free.
            assert await refused(stalled) == "epoch-old"
            assert port.refusals() == ["epoch-old"]

    run(story())


def test_a_node_attests_anew_and_goes_on(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        clock = HandClock(EARLY)
        server = federation.node("aggregator", clock=clock)
        async with open_server(server, tmp_path) as port:
            await enrol(federation.node("alice", clock=clock), port.enrolment)
            clock.forward(ADMISSION_LIFE)
            again = federation.node("alice", clock=clock, epoch=2)
            async with admitted_channel(port, again) as channel:
                call = receive(port, channel)
                await until(lambda: port.coordinator._attendance._joined == {"alice"})
                call.cancel()
            assert port.admitted() == [("alice", 2)]
            assert port.refusals() == []

    run(story())
