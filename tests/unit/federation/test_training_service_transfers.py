"""Updates and models on their way: places, laggards, stalled receivers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import msgspec
import pytest
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.held_updates import held_bytes
from tests.support.open_server import (
    OpenServer,
    admitted_channel,
    open_server,
    refusal_code,
)
from tests.support.plan_tree import FEATURES, with_quorum
from tests.support.running import Run, until
from tests.support.training_calls import (
    Contributing,
    Receiving,
    begin_round,
    contribute,
    model_in,
    model_of,
    receive,
    refused,
    send,
    send_update,
    update_for,
    wanted,
)

from cloister.federation import training_service
from cloister.federation.messages import (
    MAX_HEADER_BYTES,
    ModelHeader,
    UpdateHeader,
    decode_header,
    encode_header,
)
from cloister.ratls.certificate import SERVER_NAME
from cloister.ratls.enrolling import enrol
from cloister.ratls.node import Node

WORKERS = ("alice", "bob", "carol", "dave")
# Updates of two chunks, and of so many that no buffer on the way takes them all.
TWO_CHUNKS, MANY_CHUNKS = 100_000, 1_200_000


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Four workers, all of whom must contribute."""
    return make_federation(
        tmp_path_factory.mktemp("four"), more_workers=("carol", "dave")
    )


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Four workers, of whom two are enough once a deadline has passed."""
    return make_federation(
        tmp_path_factory.mktemp("some"),
        more_workers=("carol", "dave"),
        change=lambda tree: with_quorum(tree, 2, deadline_seconds=3600),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A server in its first round, and its workers."""

    port: OpenServer
    nodes: dict[str, Node]
    channels: dict[str, grpc.aio.Channel]

    def update(self, party: str, *, round_number: int = 1) -> list[bytes]:
        return update_for(self.port, self.nodes[party], round_number=round_number)

    async def offer(self, party: str) -> Contributing:
        """Says that a party has an update; its chunks may be wanted later."""
        call = contribute(self.channels[party])
        await send(call, self.update(party)[:1])
        return call

    async def bring(self, party: str) -> Contributing:
        """Has a party contribute; its call then waits for a model."""
        call = contribute(self.channels[party])
        await send_update(call, self.update(party))
        return call

    @property
    def placed(self) -> list[str]:
        """Who has a place or waits for one."""
        intake = self.port.coordinator._intake
        assert intake is not None
        return sorted(place.party for place in intake.staging._places)


@asynccontextmanager
async def stage_of(
    federation: Federation, directory: Path, *, features: int = FEATURES
) -> AsyncIterator[Stage]:
    """A round of all workers; at its end nothing of it is left."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(
            open_server(federation.node("aggregator"), directory, features=features)
        )
        nodes = {it.name: federation.node(it.name) for it in federation.plan.workers}
        channels = {
            name: await stack.enter_async_context(admitted_channel(port, node))
            for name, node in nodes.items()
        }
        await begin_round(port, *channels.values())
        yield Stage(port=port, nodes=nodes, channels=channels)
    await until(lambda: asyncio.all_tasks() <= before)
    assert held_bytes() == 0


async def header_of(call: Receiving) -> ModelHeader:
    message = await call.read()
    assert isinstance(message, bytes)
    return decode_header(message, ModelHeader, chunk_bytes=len(message))


async def rest_of(call: Receiving) -> tuple[bytes, str]:
    """Returns what still comes of a model, and the code of what ends it."""
    got = b""
    try:
        while isinstance(chunk := await call.read(), bytes):
            got += chunk
    except grpc.aio.AioRpcError as error:
        return got, refusal_code(error)
    return got, ""


def test_places_are_given_in_the_plans_order_whoever_comes_first(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with stage_of(four, tmp_path, features=TWO_CHUNKS) as stage:
            calls = {party: await stage.offer(party) for party in reversed(WORKERS)}
            await until(lambda: stage.placed == sorted(WORKERS))
            asked = []
            for party in WORKERS:
                await wanted(calls[party])
                asked.append(party)
                await send(calls[party], stage.update(party)[1:])
                await calls[party].done_writing()
            assert asked == list(WORKERS)
            first, *others = [await model_of(calls[party]) for party in WORKERS]
            assert all(model == first for model in others)
            assert stage.port.refusals() == []

    run(story())


@pytest.mark.parametrize("chunks", [0, 1])
def test_a_transfer_that_breaks_leaves_neither_its_place_nor_a_byte(
    run: Run, four: Federation, tmp_path: Path, chunks: int
) -> None:
    async def story() -> None:
        async with stage_of(four, tmp_path, features=TWO_CHUNKS) as stage:
            call = await stage.offer("alice")
            await wanted(call)
            await send(call, stage.update("alice")[1 : 1 + chunks])
            traffic = stage.port.coordinator.traffic
            await until(lambda: traffic.received > 0 or not chunks)
            call.cancel()
            await until(lambda: stage.placed == [])
            await until(lambda: held_bytes() == 0)
            calls = [await stage.bring(party) for party in WORKERS]
            assert all([await model_of(call) for call in calls])

    run(story())


def test_who_is_gone_while_it_waits_for_a_place_may_come_again(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with stage_of(four, tmp_path) as stage:
            waiting = await stage.offer("dave")
            await until(lambda: stage.placed == ["dave"])
            waiting.cancel()
            await until(lambda: stage.placed == [])
            assert stage.port.coordinator._machine.waiting == ()
            calls = [await stage.bring(party) for party in WORKERS]
            assert all([await model_of(call) for call in calls])

    run(story())


def test_a_newer_node_takes_the_place_of_the_one_it_replaces(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with stage_of(four, tmp_path, features=TWO_CHUNKS) as stage:
            for party, chunks in (("alice", 1), ("dave", 0)):
                former = await stage.offer(party)
                if chunks:
                    await wanted(former)
                    await send(former, stage.update(party)[1:2])
                    await until(lambda: held_bytes() > 0)
                else:
                    await until(lambda: stage.placed == ["dave"])
                newer = four.node(party, epoch=2)
                async with admitted_channel(stage.port, newer) as channel:
                    call = contribute(channel)
                    await send(call, update_for(stage.port, newer)[:1])
                    sending = stage.port.ports._training_service._sending
                    await until(
                        lambda: sending[party].key == newer.identity.tls_spki  # noqa: B023
                    )
                    assert await refused(former) == "epoch-old"
                    await until(lambda: stage.placed == [party])  # noqa: B023
                    assert held_bytes() == 0
                    call.cancel()
                    await until(lambda: stage.placed == [])

    run(story())


def test_who_sends_or_waits_as_a_round_ends_is_told_at_once_and_gets_the_next(
    run: Run, some: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with stage_of(some, tmp_path, features=TWO_CHUNKS) as stage:
            counted = [await stage.bring(party) for party in ("dave", "bob")]
            coordinator = stage.port.coordinator
            await until(lambda: coordinator._machine.counted == ("bob", "dave"))
            sending = await stage.offer("alice")
            await wanted(sending)
            await send(sending, stage.update("alice")[1:2])
            computing = stage.channels["carol"]
            await until(lambda: held_bytes() > 0)
            coordinator._expire(1)
            for call in counted:
                assert await model_of(call)
            assert await refused(sending) == "update-late"
            late = contribute(computing)
            await send(late, stage.update("carol")[:1])
            assert await refused(late) == "update-late"
            for party in ("alice", "carol"):
                again = receive(stage.port, stage.channels[party])
                assert (await header_of(again)).round == 2
                again.cancel()
            # Nobody's fault, and so no record of the audit log's.
            assert stage.port.audit.calls == []
            [round_] = stage.port.audit.rounds
            assert [it.party for it in round_.participants] == ["bob", "dave"]

    run(story())


def test_a_laggard_is_told_that_its_model_is_gone_and_never_gets_half_of_two(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with stage_of(federation, tmp_path, features=MANY_CHUNKS) as stage:
            wire = stage.port.coordinator.wire
            before = stage.port.coordinator.model.data.tobytes()
            laggard = receive(stage.port, stage.channels["alice"])
            opening = await laggard.read()
            assert isinstance(opening, bytes)
            header, first = model_in([opening])
            assert header.round == 1
            calls = [await stage.bring(party) for party in ("alice", "bob")]
            after = [await model_of(call) for call in calls]
            assert after == 2 * [stage.port.coordinator.model.data.tobytes()]
            got, code = await rest_of(laggard)
            assert code == "model-superseded"
            assert len(first + got) < wire.size_bytes
            assert before.startswith(first + got)

    run(story())


@asynccontextmanager
async def narrow_channel(
    port: OpenServer, node: Node
) -> AsyncIterator[grpc.aio.Channel]:
    """Opens a channel whose end buffers next to nothing of what is not read."""
    enrolled = await enrol(node, port.enrolment)
    pem = ssl.DER_cert_to_PEM_cert
    credentials = grpc.ssl_channel_credentials(
        root_certificates=pem(enrolled.server_certificate).encode(),
        private_key=node.identity.tls_key_pem(),
        certificate_chain=pem(enrolled.admittance.certificate).encode(),
    )
    options = [
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65536),
    ]
    async with grpc.aio.secure_channel(
        str(port.training), credentials, options=options
    ) as channel:
        yield channel


def handlers() -> int:
    """Returns how many calls a server in this process is at work on."""
    shown = [repr(task.get_coro()) for task in asyncio.all_tasks()]
    return sum("_handle_exceptions" in it for it in shown)


def test_a_receiver_that_stalls_is_cut_and_disturbs_nobody(
    run: Run,
    federation: Federation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_service, "_STALL_SECONDS", 0.2)
    monkeypatch.setattr(training_service, "_DRAIN_SECONDS", 0.2)

    async def story() -> None:
        async with stage_of(federation, tmp_path, features=MANY_CHUNKS) as stage:
            port = stage.port
            alice = federation.node("alice", epoch=2)
            async with narrow_channel(port, alice) as channel:
                stalled = receive(port, channel)
                assert (await header_of(stalled)).round == 1
                # Who takes its model meanwhile does not notice.
                assert await model_of(receive(port, stage.channels["bob"]))
                await until(lambda: port.refusals() == ["transfer-stalled"])
                # Nor does the call wait for ever to be told so.
                await until(lambda: handlers() == 0)
                assert await refused(stalled) == "transfer-stalled"
                calls = [contribute(channel), contribute(stage.channels["bob"])]
                for call, node in zip(calls, (alice, stage.nodes["bob"]), strict=True):
                    await send_update(call, update_for(port, node))
                first, second = await asyncio.gather(*map(model_of, calls))
                assert first == second
            assert port.audit.calls == [("alice", "transfer-stalled")]

    run(story())


def test_where_some_must_wait_no_chunk_comes_with_a_header(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    """Four updates of which each began unasked would be twice what has room."""

    async def story() -> None:
        async with stage_of(four, tmp_path) as stage:
            out = stage.port.coordinator._published
            assert out is not None
            assert not out.header.at_once
            for party, size, code in (
                ("alice", 8, "update-early"),
                ("dave", MAX_HEADER_BYTES, "header-size"),
            ):
                call = contribute(stage.channels[party])
                header = decode_header(stage.update(party)[0], UpdateHeader)
                early = msgspec.structs.replace(header, first_chunk=bytes(size))
                await send(call, [encode_header(early)])
                assert await refused(call) == code
            assert held_bytes() == 0
            calls = [await stage.bring(party) for party in WORKERS]
            assert len({await model_of(call) for call in calls}) == 1

    run(story())
