from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import grpc
import msgspec
import numpy as np
import pytest
from tests.support.held_updates import held_bytes
from tests.support.open_server import (
    OpenServer,
    admitted_channel,
    jump_to,
    open_server,
    refusal_code,
)
from tests.support.plan_tree import FEATURES
from tests.support.running import Run
from tests.support.training_calls import (
    Contributing,
    Receiving,
    begin_round,
    contribute,
    final_report,
    finish,
    model_in,
    model_of,
    receive,
    refused,
    report,
    send,
    send_update,
    until,
    update_for,
    wanted,
)

from cloister.errors import (
    CloisterError,
    ConfigError,
    ProtocolError,
    StorageError,
    VerificationError,
)
from cloister.federation import training_service
from cloister.federation.call_limits import CALLS_OF_A_PARTY
from cloister.federation.countersigning import countersign_head
from cloister.federation.messages import (
    MAX_HEADER_BYTES,
    RECEIVE,
    Finished,
    ModelHeader,
    ModelRequest,
    UpdateHeader,
    decode_header,
    encode_header,
)
from cloister.federation.transfer_sizes import FEW
from cloister.ratls.channels import MAX_CHUNK_BYTES, ClientTls, open_channel
from cloister.ratls.enrolling import enrol
from cloister.ratls.epochs import key_digest
from cloister.ratls.node import Node
from cloister.ratls.refusal_log import TOLD_PER_MINUTE

Change = Callable[[list[bytes]], list[bytes]]
UnaryStream: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]"
UnaryUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


@asynccontextmanager
async def first_round(
    server: Node, alice: Node, bob: Node, directory: Path, *, features: int = FEATURES
) -> AsyncIterator[tuple[OpenServer, grpc.aio.Channel, grpc.aio.Channel]]:
    """Opens a server whose two workers have the model of round 1."""
    async with (
        open_server(server, directory, features=features) as port,
        admitted_channel(port, alice) as channel,
        admitted_channel(port, bob) as other,
    ):
        await begin_round(port, channel, other)
        yield port, channel, other


async def answer_of(call: Contributing | Receiving) -> tuple[ModelHeader, bytes]:
    """Returns the model that answers a call whose part is said."""
    messages: list[bytes] = []
    while isinstance(message := await call.read(), bytes):
        messages.append(message)
    return model_in(messages)


async def offer(call: Contributing, messages: list[bytes]) -> None:
    """Sends messages until one is refused: the second only if the server asks for it.

    Who sends before it is asked may be cut off as it does, and not hear why.
    """
    with contextlib.suppress(grpc.aio.AioRpcError):
        await send(call, messages[:1])
        if messages[1:]:
            await wanted(call)
            await send(call, messages[1:])


def changed(message: bytes, **fields: object) -> bytes:
    header = decode_header(message, UpdateHeader)
    return encode_header(msgspec.structs.replace(header, **fields))


def test_a_round_over_the_wire(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with first_round(server, alice, bob, tmp_path) as (port, *channels):
            calls = [contribute(channel) for channel in channels]
            for call, node in zip(calls, (alice, bob), strict=True):
                await send_update(call, update_for(port, node))
            answers = [await answer_of(call) for call in calls]
            assert answers[0] == answers[1]
            header, sent = answers[0]
            assert header.round == 2
            model = port.coordinator.model
            assert sent == model.data.tobytes()
            assert port.coordinator.traffic.received == 2 * model.layout.size_bytes
            assert port.coordinator.traffic.sent == 4 * model.layout.size_bytes
            assert port.refusals() == []

    run(story())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda _: [], "update-empty"),
        (lambda m: m[:1], "transfer-short"),
        (lambda m: [m[0], m[1][:-1]], "chunk-size"),
        (lambda m: [m[0], m[1] + b"\0"], "chunk-size"),
        (lambda m: [m[0], m[1], b"\0"], "chunk-size"),
        (lambda m: [m[0], b"", m[1]], "chunk-size"),
        (lambda m: [m[0], m[0], m[1]], "chunk-size"),
        (lambda m: [m[1]], "header-malformed"),
        (lambda _: [b""], "header-malformed"),
        (lambda _: [bytes(MAX_HEADER_BYTES + FEW.chunk_bytes + 1)], "header-size"),
        (lambda m: [changed(m[0], round=2), m[1]], "update-round"),
        (lambda m: [changed(m[0], examples=17), m[1]], "update-weight"),
        (lambda m: [changed(m[0], examples=2**40), m[1]], "update-weight"),
        (lambda m: [changed(m[0], layout="0" * 64), m[1]], "layout-differs"),
        (lambda m: [changed(m[0], loss_sum=np.nan), m[1]], "update-not-finite"),
        (
            lambda m: [changed(m[0], evaluation=report(a=1.0)), m[1]],
            "update-evaluation",
        ),
        (lambda m: [m[0], b"\xff" * 4 + m[1][4:]], "update-not-finite"),
        (lambda m: [m[0], m[1][:-8] + b"\xff" * 8], "update-not-finite"),
        (lambda m: [m[0], b"\xff" * len(m[1])], "chunk-padding"),
        (lambda m: [changed(m[0], first_chunk=b"")], "chunk-size"),
        (lambda m: [changed(m[0], first_chunk=m[1] + b"\0")], "chunk-size"),
        (lambda m: [changed(m[0], first_chunk=m[1], round=2)], "update-round"),
    ],
)
def test_an_update_that_cannot_count_is_refused_by_name_and_leaves_the_round(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path, change: Change, code: str
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, channel, other):
            before = port.coordinator.model.data.tobytes()
            call = contribute(channel)
            await offer(call, change(update_for(port, nodes[1])))
            assert await refused(call) == code
            assert port.refusals() == [code]
            assert port.coordinator._machine.missing == ("alice", "bob")
            assert port.coordinator.model.data.tobytes() == before
            # The same party may try again, rightly.
            calls = [contribute(it) for it in (channel, other)]
            for call, node in zip(calls, nodes[1:], strict=True):
                await send_update(call, update_for(port, node))
            assert await model_of(calls[0]) == await model_of(calls[1])

    run(story())


def test_where_there_is_a_place_for_everybody_an_update_comes_unasked(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path, features=300_000) as (port, *channels):
            out = port.coordinator._published
            assert out is not None
            assert out.header.at_once
            calls = [contribute(channel) for channel in channels]
            for call, node in zip(calls, nodes[1:], strict=True):
                header, first, *chunks = update_for(port, node)
                await send(call, [changed(header, first_chunk=first), *chunks])
                await call.done_writing()
            answers = [await answer_of(call) for call in calls]
            assert answers[0] == answers[1]
            assert answers[0][0].round == 2
            size = port.coordinator.model.layout.size_bytes
            assert port.coordinator.traffic.received == 2 * size
            assert port.refusals() == []

    run(story())


def test_who_sends_unasked_hears_in_the_middle_of_it_why_it_is_refused(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path, features=300_000) as (port, line, _):
            header, first, *chunks = update_for(port, nodes[1])
            for bad in ({"examples": 17}, {"countersignature": b""}, {"round": 2}):
                call = contribute(line)
                opening = changed(header, first_chunk=first, **bad)
                await send(call, [opening, *chunks])
                assert await refused(call) in {
                    "update-weight",
                    "countersignature",
                    "update-round",
                }
            assert port.coordinator.traffic.received == 0
            assert held_bytes() == 0

    run(story())


def test_a_refusal_in_the_middle_of_a_large_update_still_says_why(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    """A call that is ended while its client sends would lose its status."""

    async def story() -> None:
        async with first_round(*nodes, tmp_path, features=300_000) as (port, line, _):
            header, *chunks = update_for(port, nodes[1])
            assert len(chunks) > 3
            for messages in (
                [*chunks, b"more"],
                [b"", *chunks],
                [chunks[0], chunks[-1], *chunks],
            ):
                call = contribute(line)
                await send(call, [header])
                await wanted(call)
                await send(call, messages)
                assert await refused(call) == "chunk-size"
            assert port.coordinator._machine.missing == ("alice", "bob")

    run(story())


def test_who_waits_to_be_asked_for_chunks_hears_a_refusal_at_once(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    """It sends nothing that would have to be read first, and its stream stays open."""

    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, channel, _):
            loop = asyncio.get_running_loop()
            began = loop.time()
            call = contribute(channel)
            await send(call, [changed(update_for(port, nodes[1])[0], round=2)])
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert refusal_code(caught.value) == "update-round"
            assert loop.time() - began < training_service._DRAIN_SECONDS / 2

    run(story())


def test_a_refused_caller_that_does_not_stop_is_cut_off(
    run: Run,
    nodes: tuple[Node, Node, Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_service, "_DRAIN_SECONDS", 0.05)

    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, channel, _):
            header = update_for(port, nodes[1])[0]
            call = contribute(channel)
            await send(call, [header])
            await wanted(call)
            await send(call, [b"nonsense"])
            # The stream stays open, and nothing comes.
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            flood = contribute(channel)
            await send(flood, [header])
            await wanted(flood)
            await send(flood, [b"nonsense"])
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                while True:
                    await flood.write(bytes(MAX_CHUNK_BYTES))
            assert flood.done()
            assert port.coordinator.traffic.received == 0
            assert port.coordinator._machine.missing == ("alice", "bob")

    run(story())


@pytest.fixture
def nodes(server: Node, alice: Node, bob: Node) -> tuple[Node, Node, Node]:
    return server, alice, bob


def test_a_message_above_the_limit_is_stopped_by_the_transport(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> None:
        server, alice, bob = nodes
        async with open_server(server, tmp_path) as port:
            enrolled = await enrol(alice, port.enrolment)
            # A channel of ours would not even send it.
            channel = open_channel(
                port.training,
                pinned_certificate=enrolled.server_certificate,
                max_message_bytes=4 * MAX_CHUNK_BYTES,
                client=ClientTls(
                    identity=alice.identity,
                    admission_certificate=enrolled.admittance.certificate,
                ),
            )
            async with channel, admitted_channel(port, bob) as other:
                await begin_round(port, channel, other)
                call = contribute(channel)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await send(call, update_for(port, alice)[:1])
                    await wanted(call)
                    await send(call, [bytes(MAX_CHUNK_BYTES + 1)])
                assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert port.coordinator._machine.missing == ("alice", "bob")

    run(story())


@pytest.mark.parametrize("request_bytes", [b"", b"\xff", bytes(MAX_HEADER_BYTES + 1)])
def test_a_request_that_is_none_is_refused(
    run: Run, server: Node, alice: Node, tmp_path: Path, request_bytes: bytes
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
        ):
            method: UnaryStream = channel.unary_stream(RECEIVE)
            call = method(request_bytes)
            assert await refused(call) in {"header-malformed", "header-size"}
            assert port.coordinator._attendance._joined == set()

    run(story())


def test_a_worker_of_another_layout_does_not_join(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
        ):
            method: UnaryStream = channel.unary_stream(RECEIVE)
            call = method(encode_header(ModelRequest(layout="0" * 64)))
            assert await refused(call) == "layout-differs"
            assert port.coordinator._attendance._joined == set()

    run(story())


def test_no_other_method_exists_on_the_training_port(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
        ):
            for name in ("/cloister.Enrolment/Enrol", "/cloister.Training/Stop", "/"):
                method: UnaryUnary = channel.unary_unary(name)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await method(b"")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(story())


def test_a_call_that_breaks_off_leaves_the_round_as_it_is(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, channel, other):
            broken = contribute(channel)
            await send(broken, update_for(port, nodes[1])[:1])
            broken.cancel()
            calls = [contribute(it) for it in (channel, other)]
            for call, node in zip(calls, nodes[1:], strict=True):
                await send_update(call, update_for(port, node))
            for call in calls:
                assert await model_of(call)
            # Whether gRPC tells a broken stream from an ended one is a matter of luck.
            assert set(port.refusals()) <= {"transfer-short"}

    run(story())


def test_the_end_of_training_over_the_wire(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, *channels):
            rounds = port.node.plan.training.rounds
            jump_to(port, rounds + 1)
            told = []
            for channel, node in zip(channels, nodes[1:], strict=True):
                final = [m async for m in receive(port, channel)]
                assert model_in(final)[0].final
                last = final_report(port, node, report(2, a=1.0))
                told.append(asyncio.ensure_future(finish(channel, last)))
            metrics = await port.coordinator.run(patience_seconds=5)
            assert metrics == {"a": 0.5}
            # Who has reported is needed until the model is sealed.
            assert not any(it.done() for it in told)
            port.coordinator.release()
            for raw in await asyncio.gather(*told):
                assert decode_header(raw, Finished) == Finished()
            late = contribute(channels[0])
            await send(late, update_for(port, nodes[1], round_number=rounds)[:1])
            assert await refused(late) == "update-late"

    run(story())


def test_an_admission_lapses_when_its_rounds_are_over(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, channel, _):
            assert port.ports.table.round == 1
            allowed = port.node.plan.admission.rounds
            jump_to(port, allowed)
            assert await model_of(receive(port, channel))
            jump_to(port, allowed + 1)
            assert port.ports.table.round == allowed + 1
            assert await refused(receive(port, channel)) == "admission-lapsed"

    run(story())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_last_report_that_is_no_number_is_refused(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path, value: float
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, channel, _):
            jump_to(port, port.node.plan.training.rounds + 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await finish(channel, final_report(port, nodes[1], report(2, a=value)))
            assert refusal_code(caught.value) == "evaluation-not-finite"
            assert port.coordinator.metrics is None

    run(story())


def test_a_party_that_floods_the_log_is_counted_and_hides_no_other(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> OpenServer:
        async with first_round(*nodes, tmp_path) as (port, channel, other):
            bad = changed(update_for(port, nodes[2])[0], examples=17)
            for _ in range(TOLD_PER_MINUTE + 7):
                call = contribute(other)
                await send(call, [bad])
                assert await refused(call) == "update-weight"
            call = contribute(channel)
            await send(call, [bad])
            assert await refused(call) == "update-weight"
            return port

    port = run(story())
    told = [str(line["reason"]) for line in port.events("call-refused")]
    assert sum("'bob'" in reason for reason in told) == TOLD_PER_MINUTE
    assert sum("'alice'" in reason for reason in told) == 1
    # The rest is told when the port closes.
    [line] = port.events("refusals-left-out")
    assert line["count"] == 7


def test_a_renewal_is_no_sign_of_life_but_a_first_admission_is(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> None:
        server, alice, bob = nodes
        async with open_server(server, tmp_path) as port:
            began = port.coordinator._attendance._touched
            await enrol(alice, port.enrolment)
            first = port.coordinator._attendance._touched
            assert first > began
            await enrol(alice, port.enrolment)
            assert port.coordinator._attendance._touched == first
            await enrol(bob, port.enrolment)
            assert port.coordinator._attendance._touched > first

    run(story())


def forged(message: bytes, signature: bytes) -> bytes:
    return changed(message, countersignature=signature)


@pytest.mark.parametrize("whose", ["nobody", "bob", "before"])
def test_an_update_without_its_nodes_signature_over_the_head_does_not_count(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path, whose: str
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, channel, _):
            _, alice, bob = nodes
            header, _ = update_for(port, alice)
            model = port.coordinator.check_header(
                "alice", decode_header(header, UpdateHeader)
            )
            older = msgspec.structs.replace(model, audit_head=b"\1" * 32)
            signature = {
                "nobody": b"",
                "bob": countersign_head(bob, model),
                "before": countersign_head(alice, older),
            }[whose]
            call = contribute(channel)
            await send(call, [forged(header, signature)])
            assert await refused(call) == "countersignature"
            assert port.coordinator._machine.missing == ("alice", "bob")
            # Refused before its chunks were read.
            assert port.coordinator.traffic.received == 0
            assert port.audit.calls == [("alice", "countersignature")]

    run(story())


def test_a_round_is_recorded_with_the_nodes_and_their_signatures(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, *channels):
            first = port.coordinator._published
            assert first is not None
            sent = []
            calls = [contribute(channel) for channel in channels]
            for call, node in zip(calls, nodes[1:], strict=True):
                update = update_for(port, node)
                sent.append(decode_header(update[0], UpdateHeader).countersignature)
                await send(call, update)
                await call.done_writing()
            for call in calls:
                assert await model_of(call)
            [round_] = port.audit.rounds
            assert round_.head == first.header.audit_head.hex()
            assert [
                (it.party, it.tls_key_sha256, it.countersignature)
                for it in round_.participants
            ] == [
                (node.party, key_digest(node.identity.tls_spki).hex(), signature)
                for node, signature in zip(nodes[1:], sent, strict=True)
            ]

    run(story())


def test_a_last_report_without_a_signature_over_the_head_does_not_count(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, channel, _):
            jump_to(port, port.node.plan.training.rounds + 1)
            last = final_report(port, nodes[2], report(2, a=1.0))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await finish(channel, last)
            assert refusal_code(caught.value) == "countersignature"
            assert port.coordinator._machine.missing == ("alice", "bob")

    run(story())


def test_refusals_of_admitted_nodes_are_recorded_and_a_failed_run_is_none(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, channel, other):
            call = contribute(channel)
            await send(call, [b"nonsense"])
            assert await refused(call) == "header-malformed"
            assert port.audit.calls == [("alice", "header-malformed")]
            await port.coordinator.fail(ProtocolError("over", code="over"))
            for each in (channel, other):
                assert await refused(receive(port, each)) == "over"
            assert len(port.audit.calls) == 1

    run(story())


def test_a_refusal_that_cannot_be_recorded_ends_the_run(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    """Who hears of it hears no less than before."""

    async def story() -> None:
        server, alice, bob = nodes
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
            admitted_channel(port, bob) as other,
        ):
            await begin_round(port, channel, other)
            port.audit.full = True
            call = contribute(channel)
            await send(call, [b"nonsense"])
            assert await refused(call) == "header-malformed"
            failure = port.coordinator.failure
            assert failure is not None
            assert failure.code == "audit-unwritable"
            # A disk can be mended: whoever hears this waits for the next server.
            assert await refused(receive(port, other)) == "server-stopped"

    run(story())


def test_a_failure_that_no_other_server_is_spared_is_told_by_its_name(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story(error: CloisterError) -> str:
        async with first_round(*nodes, tmp_path / error.code) as (port, channel, _):
            await port.coordinator.fail(error)
            told = await refused(receive(port, channel))
            # This side's own log has it as it is.
            assert {event["code"] for event in port.events("call-refused")} == {
                error.code
            }
            return told

    for error, told in (
        (ConfigError("too fast", code="training-diverged"), "training-diverged"),
        (ConfigError("not so", code="task-failed"), "task-failed"),
        (VerificationError("replaced", code="epoch-old"), "epoch-old"),
        (StorageError("/disk is full", code="mirror-unwritable"), "server-stopped"),
    ):
        assert run(story(error)) == told


def test_reports_that_wait_are_calls_like_all_others(
    run: Run, nodes: tuple[Node, Node, Node], tmp_path: Path
) -> None:
    async def story() -> None:
        async with first_round(*nodes, tmp_path) as (port, channel, _):
            jump_to(port, port.node.plan.training.rounds + 1)
            last = final_report(port, nodes[1], report(2, a=1.0))
            waiting = [
                asyncio.ensure_future(finish(channel, last))
                for _ in range(CALLS_OF_A_PARTY)
            ]
            shares = port.ports._training_service._limits._shares
            await until(
                lambda: "alice" in shares and shares["alice"].calls == len(waiting)
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await finish(channel, last)
            assert refusal_code(caught.value) == "calls-too-many"
            port.coordinator.release()
            await asyncio.gather(*waiting)
            assert shares == {}

    run(story())
