"""Calls, streams and TLS sessions that outlive what admitted their owner.

A resumed session shows no certificate, so TLS checks none. An open connection showed
its own long ago. The admission table is asked each time.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from tests.support.audit import RecordedDoor
from tests.support.federation_in_memory import (
    START,
    Federation,
    HandClock,
    make_federation,
)
from tests.support.open_server import OpenServer, admitted_channel, open_server
from tests.support.published_collateral import out_of_date, publish
from tests.support.recorded_log import RecordedLog
from tests.support.relay import always, relay
from tests.support.running import Run, until
from tests.support.training_calls import (
    begin_round,
    contribute,
    model_of,
    receive,
    refused,
    send,
    send_update,
    update_for,
)

from cloister.ratls.certificate import SERVER_NAME
from cloister.ratls.enrolling import Enrolled, enrol
from cloister.ratls.node import Node
from cloister.ratls.reappraisal import reappraise

LIFE = timedelta(hours=12)
# TLS looks at the real clock: from here an admission lapses, by the hand-set clock, at
# a time at which its certificate is still good for TLS.
EARLY = START - LIFE + timedelta(hours=1)
FEATURES = 100_000  # an update of two chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Alice and bob are admitted; alice's admission is about to end.

    Attributes:
        federation: Theirs alone; its collateral may change.
        clock: Everybody's.
        port: The server.
        alice: Her node.
        bob: His.
    """

    federation: Federation
    clock: HandClock
    port: OpenServer
    alice: Node
    bob: Node

    async def by_time(self) -> None:
        self.clock.forward(LIFE)

    async def by_rounds(self) -> None:
        table = self.port.ports.table
        table.advance(table.round + self.federation.plan.admission.rounds)

    async def by_reappraisal(self) -> None:
        publish(self.federation, out_of_date("tdx"))  # alice's TEE, and nobody else's
        node, table = self.port.node, self.port.ports.table
        await reappraise(node, table, audit=RecordedDoor(), log=RecordedLog().logger())

    async def by_a_newer_node(self) -> None:
        newer = self.federation.node("alice", clock=self.clock, epoch=2)
        await enrol(newer, self.port.enrolment)


Ending = Callable[[Stage], Awaitable[None]]
ENDINGS: list[tuple[Ending, str]] = [
    (Stage.by_time, "admission-lapsed"),
    (Stage.by_rounds, "admission-lapsed"),
    (Stage.by_reappraisal, "admission-withdrawn"),
    (Stage.by_a_newer_node, "not-admitted"),
]
every_ending = pytest.mark.parametrize(
    ("end", "code"), ENDINGS, ids=[end.__name__ for end, _ in ENDINGS]
)


@asynccontextmanager
async def stage_of(directory: Path, end: Ending) -> AsyncIterator[Stage]:
    federation = make_federation(directory)
    begins: datetime = EARLY if end is Stage.by_time else START
    clock = HandClock(begins)
    server = federation.node("aggregator", clock=clock)
    async with open_server(server, directory / "run", features=FEATURES) as port:
        yield Stage(
            federation=federation,
            clock=clock,
            port=port,
            alice=federation.node("alice", clock=clock),
            bob=federation.node("bob", clock=clock),
        )


async def bob_goes_on(stage: Stage) -> None:
    """Has bob, whose time may be over as well, attest again and be counted."""
    port = stage.port
    async with admitted_channel(port, stage.bob) as channel:
        call = contribute(channel)
        await send_update(call, update_for(port, stage.bob))
        await until(lambda: port.coordinator._machine.missing == ("alice",))
        call.cancel()


@every_ending
def test_neither_a_message_nor_a_call_passes_on_a_connection_that_was_open_before(
    run: Run, tmp_path: Path, end: Ending, code: str
) -> None:
    async def story() -> None:
        async with (
            stage_of(tmp_path, end) as stage,
            admitted_channel(stage.port, stage.alice) as channel,
            admitted_channel(stage.port, stage.bob) as other,
        ):
            port = stage.port
            await begin_round(port, channel, other)
            sent = port.coordinator.traffic.sent
            header, first, last = update_for(port, stage.alice)
            stream = contribute(channel)
            await send(stream, [header, first])
            await until(lambda: port.coordinator.traffic.received == len(first))

            await end(stage)
            await send(stream, [last])
            assert await refused(stream) == code
            assert await refused(receive(port, channel)) == code
            assert await refused(contribute(channel)) == code

            assert port.coordinator.traffic.received == len(first)
            assert port.coordinator.traffic.sent == sent
            assert port.coordinator._machine.missing == ("alice", "bob")
            assert port.refusals() == 3 * [code]
            await bob_goes_on(stage)
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


@asynccontextmanager
async def keeping_sessions(
    port: OpenServer, node: Node, enrolled: Enrolled, cache: object
) -> AsyncIterator[grpc.aio.Channel]:
    """Opens a channel of its own, as a node that keeps its TLS sessions would."""
    pem = ssl.DER_cert_to_PEM_cert
    credentials = grpc.ssl_channel_credentials(
        root_certificates=pem(enrolled.server_certificate).encode(),
        private_key=node.identity.tls_key_pem(),
        certificate_chain=pem(enrolled.admittance.certificate).encode(),
    )
    options = [
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.ssl_session_cache", cache),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.secure_channel(
        str(port.training), credentials, options=options
    ) as channel:
        yield channel


def test_a_session_is_resumed_while_its_owner_is_admitted(
    run: Run, tmp_path: Path
) -> None:
    """What the next story rests on: the server does take sessions up again."""

    async def story() -> None:
        async with (
            stage_of(tmp_path, Stage.by_rounds) as stage,
            relay(always(stage.port.training)) as between,
            admitted_channel(stage.port, stage.bob) as other,
        ):
            port = replace(stage.port, training=between.address)
            enrolled = await enrol(stage.alice, port.enrolment)
            cache = cygrpc.SSLSessionCacheLRU(1)
            async with keeping_sessions(port, stage.alice, enrolled, cache) as channel:
                await begin_round(port, channel, other)
            async with keeping_sessions(port, stage.alice, enrolled, cache) as channel:
                assert await model_of(receive(port, channel))
            assert [it.resumed for it in between.passages] == [False, True]
            assert port.refusals() == []

    run(story())


@every_ending
def test_a_resumed_session_gets_nothing_after_its_owners_admission_ended(
    run: Run, tmp_path: Path, end: Ending, code: str
) -> None:
    async def story() -> None:
        async with (
            stage_of(tmp_path, end) as stage,
            relay(always(stage.port.training)) as between,
            admitted_channel(stage.port, stage.bob) as other,
        ):
            port = replace(stage.port, training=between.address)
            enrolled = await enrol(stage.alice, port.enrolment)
            cache = cygrpc.SSLSessionCacheLRU(1)
            async with keeping_sessions(port, stage.alice, enrolled, cache) as channel:
                await begin_round(port, channel, other)
            sent = port.coordinator.traffic.sent

            await end(stage)
            async with keeping_sessions(port, stage.alice, enrolled, cache) as channel:
                assert await refused(receive(port, channel)) == code
                assert await refused(contribute(channel)) == code

            # TLS let it in; the table did not.
            assert [it.resumed for it in between.passages] == [False, True]
            assert port.coordinator.traffic.sent == sent
            assert port.refusals() == 2 * [code]
            await bob_goes_on(stage)
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())
