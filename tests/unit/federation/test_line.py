"""A worker's calls, against a server that plays a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

import grpc
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.addresses import free_addresses
from tests.support.federation_in_memory import START, Federation
from tests.support.running import Run, until
from typing_extensions import override

from cloister.errors import (
    CloisterError,
    PeerInTrouble,
    ProtocolError,
    RefusedByPeer,
    VerificationError,
)
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.federation.line import SERVER_GONE, Line
from cloister.federation.messages import (
    EvaluationReport,
    FinalReport,
    Finished,
    ModelHeader,
    ModelRequest,
    UpdateHeader,
    UpdateWanted,
    decode_header,
    encode_header,
)
from cloister.federation.wire_format import Bfloat16, Float32, WireFormat
from cloister.ratls.admission_table import Peer
from cloister.ratls.certificate import make_certificate
from cloister.ratls.channels import (
    enrolment_credentials,
    listen,
    open_channel,
    server_options,
)
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node
from cloister.ratls.proofs import Identified
from cloister.ratls.refusals import encode_status

MAX_MESSAGE_BYTES = 2**22
SOON = 2.0
# Far more than gRPC sends before the other side reads.
CHUNK = 2**20
COUNT = 24
LAYOUT = layout_of({"w": np.zeros(CHUNK // 4 * COUNT - 6)}, {"mean": np.zeros(3)})
# In chunks of eight bytes, six of them.
SMALL = layout_of({"w": np.zeros(7)}, {"mean": np.zeros(2)})
WANTED = encode_header(UpdateWanted())
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Script: TypeAlias = Callable[[Context], Awaitable[None]]


class ScriptedServer(grpc.GenericRpcHandler):
    """Plays one script to every call; notes which calls were ended by the worker."""

    def __init__(self) -> None:
        self.script: Script = say()
        self.open = 0
        self.cancelled = 0

    @override
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.stream_stream_rpc_method_handler(self._talk)

    async def _talk(self, _: AsyncIterator[bytes], context: Context) -> None:
        self.open += 1
        try:
            await self.script(context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.open -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A scripted server, and a worker's line to it.

    Attributes:
        server: The server.
        channel: To it.
        peer: What the worker takes it for.
    """

    server: ScriptedServer
    channel: grpc.aio.Channel
    peer: Peer

    def line(self, model: ModelBuffer, wire: WireFormat | None = None) -> Line:
        wire = wire or Float32(model.layout)
        return Line(self.channel, self.peer, model=model, wire=wire)


class Counting(Float32):
    """Counts the chunks that are made."""

    made = 0

    @override
    def encode(self, model: ModelBuffer, number: int) -> bytes:
        self.made += 1
        return super().encode(model, number)


@asynccontextmanager
async def scripted(federation: Federation) -> AsyncIterator[Scene]:
    """Opens a scripted server behind real TLS."""
    node = federation.node("aggregator")
    certificate = make_certificate(
        node.identity, node.platform, at=START, life=timedelta(days=1)
    )
    [address] = free_addresses(1)
    handler = ScriptedServer()
    server = grpc.aio.server(options=server_options(MAX_MESSAGE_BYTES))
    server.add_generic_rpc_handlers((handler,))
    listen(server, address, enrolment_credentials(node.identity, certificate))
    await server.start()
    peer = Peer(
        role="server",
        party="aggregator",
        epoch=1,
        tls_key=new_identity().tls_spki,
        encryption_key=bytes(32),
        standing=Identified(party_key="ed25519:" + 64 * "0"),
    )
    channel = open_channel(
        address, pinned_certificate=certificate, max_message_bytes=MAX_MESSAGE_BYTES
    )
    try:
        yield Scene(server=handler, channel=channel, peer=peer)
    finally:
        await channel.close()
        await server.stop(0)


@pytest.fixture(scope="module")
def scene(runner: asyncio.Runner, federation: Federation) -> Iterator[Scene]:
    opened = scripted(federation)
    yield runner.run(opened.__aenter__())
    runner.run(opened.__aexit__(None, None, None))


def small() -> WireFormat:
    return Float32(SMALL, chunk_bytes=8)


def filled(first: int = 0) -> ModelBuffer:
    buffer = ModelBuffer(SMALL)
    buffer.parameters[:] = np.arange(first, first + 7)
    buffer.statistics[:] = (first + 0.1, first + 0.2)
    return buffer


def update_header() -> UpdateHeader:
    return UpdateHeader(
        round=3,
        layout=SMALL.digest(),
        examples=8,
        loss_sum=1.0,
        countersignature=b"signed",
    )


def model_header(*, round_number: int = 4, layout: str = SMALL.digest()) -> bytes:
    return encode_header(
        ModelHeader(
            round=round_number,
            layout=layout,
            evaluate=False,
            final=False,
            audit_head=bytes(32),
        )
    )


def model_messages(model: ModelBuffer, wire: WireFormat | None = None) -> list[bytes]:
    wire = wire or small()
    chunks = [wire.encode(model, number) for number in range(wire.chunk_count)]
    return [model_header(), *chunks]


def say(*messages: bytes) -> Script:
    """Returns a script that says some messages, and listens to nothing."""

    async def script(context: Context) -> None:
        for message in messages:
            await context.write(message)

    return script


async def listen_to(context: Context, count: int | None = None) -> list[bytes]:
    """Returns the worker's next messages; all there are without a count."""
    heard: list[bytes] = []
    while count is None or len(heard) < count:
        # The stubs do not know that it ends.
        message: object = await context.read()
        if not isinstance(message, bytes):
            break
        heard.append(message)
    return heard


# How far a call goes before something happens: each takes it one step on.
async def _nothing(_: Context) -> None:
    pass


async def _to_the_header(context: Context) -> None:
    await listen_to(context, 1)


async def _to_wanted(context: Context) -> None:
    await _to_the_header(context)
    await context.write(WANTED)


async def _into_the_chunks(context: Context) -> None:
    await _to_wanted(context)
    await listen_to(context, 2)


async def _to_the_last_chunk(context: Context) -> None:
    await _to_wanted(context)
    await listen_to(context)


async def _to_the_models_header(context: Context) -> None:
    await _to_the_last_chunk(context)
    await context.write(model_header())


async def _into_the_model(context: Context) -> None:
    await _to_the_last_chunk(context)
    for message in model_messages(filled())[:3]:
        await context.write(message)


STAGES = [
    _nothing,
    _to_the_header,
    _to_wanted,
    _into_the_chunks,
    _to_the_last_chunk,
    _to_the_models_header,
    _into_the_model,
]


async def contribute(scene: Scene, script: Script) -> ModelHeader:
    scene.server.script = script
    line = scene.line(ModelBuffer(SMALL), small())
    return await line.contribute(update_header(), filled(), at_once=False)


async def error_of(call: Awaitable[object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("kind", [Float32, Bfloat16])
def test_an_update_goes_up_and_the_next_model_comes_down(
    run: Run, scene: Scene, kind: type[Float32 | Bfloat16]
) -> None:
    wire = kind(SMALL, chunk_bytes=8)
    heard: list[bytes] = []
    model = ModelBuffer(SMALL)

    async def script(context: Context) -> None:
        heard.extend(await listen_to(context, 1))
        await context.write(WANTED)
        heard.extend(await listen_to(context))
        await say(*model_messages(filled(100), wire))(context)

    async def story() -> ModelHeader:
        scene.server.script = script
        line = scene.line(model, wire)
        return await line.contribute(update_header(), filled(), at_once=False)

    assert run(story()).round == 4
    assert decode_header(heard[0], UpdateHeader) == update_header()
    assert heard[1:] == [wire.encode(filled(), n) for n in range(wire.chunk_count)]
    assert model.data.tobytes() == filled(100).data.tobytes()


@pytest.mark.parametrize("kind", [Float32, Bfloat16])
def test_an_update_that_is_wanted_at_once_goes_up_without_a_word_of_the_server(
    run: Run, scene: Scene, kind: type[Float32 | Bfloat16]
) -> None:
    wire = kind(SMALL, chunk_bytes=8)
    heard: list[bytes] = []

    async def script(context: Context) -> None:
        heard.extend(await listen_to(context))
        await say(*model_messages(filled(100), wire))(context)

    async def story() -> ModelHeader:
        scene.server.script = script
        line = scene.line(ModelBuffer(SMALL), wire)
        return await line.contribute(update_header(), filled(), at_once=True)

    assert run(story()).round == 4
    chunks = [wire.encode(filled(), n) for n in range(wire.chunk_count)]
    opening = msgspec.structs.replace(update_header(), first_chunk=chunks[0])
    assert decode_header(heard[0], UpdateHeader) == opening
    assert heard[1:] == chunks[1:]


def test_an_update_of_nothing_has_no_chunk_to_bring_at_once(
    run: Run, scene: Scene
) -> None:
    nothing = ModelBuffer(layout_of({}, {}))
    header = msgspec.structs.replace(update_header(), layout=nothing.layout.digest())
    heard: list[bytes] = []

    async def script(context: Context) -> None:
        heard.extend(await listen_to(context, 1))
        await context.write(WANTED)
        assert await listen_to(context) == []
        await context.write(model_header(layout=nothing.layout.digest()))

    async def story() -> None:
        scene.server.script = script
        await scene.line(nothing).contribute(header, nothing, at_once=True)

    run(story())
    assert decode_header(heard[0], UpdateHeader) == header


def test_no_chunk_is_made_before_the_update_is_wanted(run: Run, scene: Scene) -> None:
    wire = Counting(SMALL, chunk_bytes=8)

    async def script(context: Context) -> None:
        await listen_to(context, 1)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not wire.made
        await context.write(WANTED)
        await listen_to(context)
        await say(*model_messages(filled()))(context)

    async def story() -> None:
        scene.server.script = script
        line = scene.line(ModelBuffer(SMALL), wire)
        await line.contribute(update_header(), filled(), at_once=False)

    run(story())
    assert wire.made == wire.chunk_count


def test_a_server_that_does_not_read_holds_the_chunks_back(
    run: Run, scene: Scene
) -> None:
    # An update is never in memory a second time.
    wire = Counting(LAYOUT, chunk_bytes=CHUNK)
    assert wire.chunk_count == COUNT

    async def story() -> None:
        read = asyncio.Event()

        async def script(context: Context) -> None:
            await _to_wanted(context)
            await read.wait()
            assert len(await listen_to(context)) == COUNT
            await context.write(model_header(layout=LAYOUT.digest()))

        scene.server.script = script
        line = scene.line(ModelBuffer(LAYOUT), wire)
        call = asyncio.ensure_future(
            line.contribute(update_header(), ModelBuffer(LAYOUT), at_once=False)
        )
        await until(lambda: wire.made > 0)
        # It makes some more until the connection holds no more.
        for _ in range(2000):
            await asyncio.sleep(0)
        assert wire.made < COUNT / 2
        read.set()
        assert (await error_of(call)).code == "transfer-short"

    run(story())


def test_the_current_model_is_asked_for_with_the_layout(run: Run, scene: Scene) -> None:
    model = ModelBuffer(SMALL)

    async def script(context: Context) -> None:
        [request] = await listen_to(context)
        assert decode_header(request, ModelRequest).layout == SMALL.digest()
        await say(*model_messages(filled()))(context)

    async def story() -> ModelHeader:
        scene.server.script = script
        return await scene.line(model, small()).receive()

    assert run(story()).round == 4
    assert model.data.tobytes() == filled().data.tobytes()


def finish(scene: Scene, script: Script) -> Awaitable[None]:
    scene.server.script = script
    report = FinalReport(
        evaluation=EvaluationReport(examples=1, sums={}), countersignature=b"signed"
    )
    return scene.line(ModelBuffer(SMALL)).finish(report)


def test_a_report_is_answered(run: Run, scene: Scene) -> None:
    async def script(context: Context) -> None:
        [report] = await listen_to(context)
        assert decode_header(report, FinalReport).countersignature == b"signed"
        await context.write(encode_header(Finished()))

    async def story() -> None:
        await finish(scene, script)
        error = await error_of(finish(scene, say(b"\xff")))
        assert error.code == "header-malformed"
        error = await error_of(finish(scene, refuse(_nothing, _ERRORS[0])))
        assert error.code == "update-late"
        error = await error_of(finish(scene, say()))
        assert error.code == "call-short"
        error = await error_of(finish(scene, break_off(_nothing)))
        assert error.code == SERVER_GONE

    run(story())


_ERRORS: list[CloisterError] = [
    ProtocolError("it is late", code="update-late", expected="round 4", got="round 3"),
    VerificationError("out", code="admission-lapsed"),
    VerificationError("not now", code="warrant-limit"),
]


def refuse(stage: Script, error: CloisterError) -> Script:
    """Returns a script that ends the call with a reason, as the server does."""
    status = (
        grpc.StatusCode.PERMISSION_DENIED
        if isinstance(error, VerificationError)
        else grpc.StatusCode.INVALID_ARGUMENT
    )

    async def script(context: Context) -> None:
        await stage(context)
        if stage in (_to_wanted, _into_the_chunks):
            # The worker is sending: it would learn only that it was cut off.
            await listen_to(context)
        await context.abort(status, encode_status(error))

    return script


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("error", "kind"),
    list(zip(_ERRORS, [ProtocolError, RefusedByPeer, PeerInTrouble], strict=True)),
    ids=lambda value: getattr(value, "code", ""),
)
def test_the_reason_of_a_refusal_arrives_whenever_it_comes(
    run: Run, scene: Scene, stage: Script, error: CloisterError, kind: type[Exception]
) -> None:
    heard = run(error_of(contribute(scene, refuse(stage, error))))
    assert type(heard) is kind
    assert heard.code == error.code
    assert heard.expected == error.expected
    assert heard.got == error.got


def break_off(stage: Script) -> Script:
    async def script(context: Context) -> None:
        await stage(context)
        raise RuntimeError("a bug of the server's")

    return script


def cut_off(stage: Script) -> Script:
    async def script(context: Context) -> None:
        await stage(context)
        await context.abort(grpc.StatusCode.INTERNAL, "no words of ours")

    return script


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("end", [break_off, cut_off])
def test_a_call_that_breaks_at_any_point_is_a_server_that_went_away(
    run: Run, scene: Scene, stage: Script, end: Callable[[Script], Script]
) -> None:
    error = run(error_of(contribute(scene, end(stage))))
    assert isinstance(error, ProtocolError)
    assert error.code == SERVER_GONE
    assert "log says why" in error.remedy


@pytest.mark.parametrize("stage", STAGES)
def test_a_server_that_is_stopped_at_any_point_went_away(
    run: Run, federation: Federation, stage: Script
) -> None:
    async def story() -> CloisterError:
        reached = asyncio.Event()

        async def script(context: Context) -> None:
            await stage(context)
            reached.set()
            await asyncio.Event().wait()

        opened = scripted(federation)
        scene = await opened.__aenter__()
        call = asyncio.ensure_future(contribute(scene, script))
        await reached.wait()
        await opened.__aexit__(None, None, None)
        return await error_of(call)

    assert run(story()).code == SERVER_GONE


def test_a_server_that_is_not_there_went_away(
    run: Run, server: Node, scene: Scene
) -> None:
    async def story() -> None:
        [nowhere] = free_addresses(1)
        certificate = make_certificate(
            server.identity, server.platform, at=START, life=timedelta(days=1)
        )
        async with open_channel(
            nowhere, pinned_certificate=certificate, max_message_bytes=MAX_MESSAGE_BYTES
        ) as channel:
            line = Line(channel, scene.peer, model=ModelBuffer(SMALL), wire=small())
            assert (await error_of(line.receive())).code == SERVER_GONE
            error = await error_of(
                line.contribute(update_header(), filled(), at_once=False)
            )
            assert error.code == SERVER_GONE

    run(story())


@pytest.mark.parametrize("turns", range(1, 8))
def test_a_call_that_ends_before_its_first_write_is_over(
    run: Run, server: Node, scene: Scene, turns: int
) -> None:
    """gRPC itself would let the write wait for a call that never begins."""

    async def story() -> None:
        [nowhere] = free_addresses(1)
        certificate = make_certificate(
            server.identity, server.platform, at=START, life=timedelta(days=1)
        )
        async with open_channel(
            nowhere, pinned_certificate=certificate, max_message_bytes=MAX_MESSAGE_BYTES
        ) as channel:
            line = Line(channel, scene.peer, model=ModelBuffer(SMALL), wire=small())
            call = asyncio.ensure_future(
                line.contribute(update_header(), filled(), at_once=False)
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            await channel.close()
            async with asyncio.timeout(SOON):
                assert (await error_of(call)).code == SERVER_GONE

    run(story())


GOOD = model_messages(filled())


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        # In the place of `UpdateWanted`.
        ([], "call-short"),
        (GOOD[1:2], "header-malformed"),
        (GOOD, "header-malformed"),
        # After it.
        ([WANTED], "call-short"),
        ([WANTED, WANTED, *GOOD], "header-malformed"),
        ([WANTED, GOOD[1], *GOOD], "header-malformed"),
        ([WANTED, model_header(layout="0" * 64), *GOOD[1:]], "layout-differs"),
        ([WANTED, GOOD[0]], "transfer-short"),
        ([WANTED, *GOOD[:-1]], "transfer-short"),
        ([WANTED, *GOOD, GOOD[-1]], "chunk-size"),
        ([WANTED, *GOOD, b""], "chunk-size"),
        ([WANTED, GOOD[0], b"", *GOOD[1:]], "chunk-size"),
        ([WANTED, GOOD[0], GOOD[1][:-1], *GOOD[2:]], "chunk-size"),
        ([WANTED, GOOD[0], GOOD[1] + b"\0", *GOOD[2:]], "chunk-size"),
        ([WANTED, GOOD[0], *GOOD], "chunk-size"),
    ],
)
@pytest.mark.parametrize("hears", [True, False])
def test_a_server_that_does_not_keep_to_the_order_is_refused(
    run: Run, scene: Scene, answer: list[bytes], code: str, *, hears: bool
) -> None:
    async def script(context: Context) -> None:
        for message in answer:
            await context.write(message)
            if message == WANTED and hears:
                await listen_to(context)

    error = run(error_of(contribute(scene, script)))
    assert isinstance(error, ProtocolError)
    # Who is cut off while it sends learns no more than that.
    assert error.code == code or (error.code == SERVER_GONE and not hears)


@given(
    answer=st.lists(
        st.sampled_from([WANTED, *GOOD]) | st.binary(max_size=40), max_size=10
    )
)
def test_whatever_a_server_says_ends_in_a_model_or_in_one_of_our_errors(
    runner: asyncio.Runner, scene: Scene, answer: list[bytes]
) -> None:
    async def story() -> None:
        try:
            await contribute(scene, say(*answer))
        except ProtocolError:
            return
        assert answer == [WANTED, *GOOD]

    runner.run(asyncio.wait_for(story(), 30))


async def quiet(scene: Scene, before: set[asyncio.Task[object]]) -> None:
    """Returns when no call is open and no task has been left."""
    await until(lambda: not scene.server.open)
    await until(lambda: set(map(_name, asyncio.all_tasks() - before)) <= {_ACCEPTING})


# The server's own task, a new one for each call that it accepts.
_ACCEPTING = "AioServer._request_call"


def _name(task: asyncio.Task[object]) -> str:
    return str(getattr(task.get_coro(), "__qualname__", ""))


@pytest.mark.parametrize("stage", STAGES)
def test_a_call_that_is_cancelled_leaves_no_task_and_no_call(
    run: Run, scene: Scene, stage: Script
) -> None:
    async def story() -> None:
        await until(lambda: not scene.server.open)
        before = asyncio.all_tasks()
        cancelled = scene.server.cancelled
        reached = asyncio.Event()

        async def script(context: Context) -> None:
            await stage(context)
            reached.set()
            await asyncio.Event().wait()

        call = asyncio.ensure_future(contribute(scene, script))
        await reached.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await quiet(scene, before)
        assert scene.server.cancelled == cancelled + 1

    run(story())


@pytest.mark.parametrize(
    "answer", [[GOOD[0]], [WANTED, WANTED], [WANTED, GOOD[0], b"\xff"]]
)
def test_a_call_that_this_side_ends_leaves_no_task_and_no_call(
    run: Run, scene: Scene, answer: list[bytes]
) -> None:
    async def story() -> None:
        await until(lambda: not scene.server.open)
        before = asyncio.all_tasks()
        cancelled = scene.server.cancelled

        async def script(context: Context) -> None:
            await say(*answer)(context)
            await asyncio.Event().wait()

        await error_of(contribute(scene, script))
        await quiet(scene, before)
        assert scene.server.cancelled == cancelled + 1

    run(story())


def test_a_refused_call_leaves_no_task_and_no_call(run: Run, scene: Scene) -> None:
    async def story() -> None:
        before = asyncio.all_tasks()
        for stage in STAGES:
            await error_of(contribute(scene, refuse(stage, _ERRORS[0])))
            await error_of(contribute(scene, cut_off(stage)))
        await quiet(scene, before)

    run(story())
