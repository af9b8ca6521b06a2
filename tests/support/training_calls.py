"""A worker's calls on the training port, one message at a time.

`contribute` opens a call on which a story may say anything at any time. Who keeps to
the order says the header, waits until the update is `wanted`, and then the chunks;
`send_update` does all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeAlias

import grpc
import msgspec
import pytest
from tests.support.open_server import OpenServer, refusal_code

from cloister.federation.countersigning import countersign_head
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import (
    CONTRIBUTE,
    FINISH,
    RECEIVE,
    EvaluationReport,
    FinalReport,
    Header,
    ModelHeader,
    ModelRequest,
    UpdateHeader,
    UpdateWanted,
    decode_header,
    encode_header,
)
from cloister.federation.wire_format import wire_format
from cloister.ratls.node import Node

Receiving: TypeAlias = "grpc.aio.UnaryStreamCall[bytes, bytes]"
Contributing: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"
_UnaryStream: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]"
_StreamStream: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"
_UnaryUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"

_WANTED = encode_header(UpdateWanted())


def receive(server: OpenServer, channel: grpc.aio.Channel) -> Receiving:
    """Asks for the current model."""
    method: _UnaryStream = channel.unary_stream(RECEIVE)
    return method(encode_header(ModelRequest(layout=layout_of_run(server))))


def contribute(channel: grpc.aio.Channel) -> Contributing:
    """Begins to send an update."""
    method: _StreamStream = channel.stream_stream(CONTRIBUTE)
    return method()


async def finish(channel: grpc.aio.Channel, message: Header) -> bytes:
    """Sends a last message."""
    method: _UnaryUnary = channel.unary_unary(FINISH)
    return await method(encode_header(message))


def layout_of_run(server: OpenServer) -> str:
    """Returns the digest of the layout that the server expects."""
    return server.coordinator.model.layout.digest()


def update_for(server: OpenServer, node: Node, *, round_number: int = 1) -> list[bytes]:
    """Returns a good update of a node, as the messages of a call."""
    update = ModelBuffer(server.coordinator.model.layout)
    header = UpdateHeader(
        round=round_number,
        layout=layout_of_run(server),
        examples=server.node.plan.training.batch_size,
        loss_sum=1.0,
        countersignature=countersigned(server, node),
    )
    wire = wire_format(
        server.node.plan.training.wire,
        update.layout,
        workers=len(server.node.plan.workers),
    )
    chunks = [wire.encode(update, number) for number in range(wire.chunk_count)]
    return [encode_header(header), *chunks]


def final_report(
    server: OpenServer, node: Node, evaluation: EvaluationReport
) -> FinalReport:
    """Returns a node's report on the model that is out."""
    return FinalReport(
        evaluation=evaluation, countersignature=countersigned(server, node)
    )


def countersigned(server: OpenServer, node: Node) -> bytes:
    """Returns a node's signature over the head of the model that is out, if one is."""
    published = server.coordinator._published
    return countersign_head(node, published.header) if published else b"none is out"


async def send(call: Contributing, messages: Iterable[bytes]) -> None:
    """Sends messages; the stream stays open."""
    for message in messages:
        await call.write(message)


async def wanted(call: Contributing) -> None:
    """Waits until the server asks for the chunks of the update whose header came."""
    message = await call.read()
    assert isinstance(message, bytes)
    decode_header(message, UpdateWanted)


async def send_update(call: Contributing, messages: Iterable[bytes]) -> None:
    """Sends an update as a worker does: its chunks only when they are wanted."""
    header, *chunks = messages
    await call.write(header)
    await wanted(call)
    await send(call, chunks)
    await call.done_writing()


async def model_of(call: Receiving | Contributing) -> bytes:
    """Returns the model a call answers with, without its header."""
    return model_in(await _rest(call))[1]


def model_in(messages: list[bytes]) -> tuple[ModelHeader, bytes]:
    """Returns the model that a server has sent, and what it said of it."""
    opening, *chunks = messages
    header = decode_header(opening, ModelHeader, chunk_bytes=len(opening))
    first = header.first_chunk or b""
    header = msgspec.structs.replace(header, first_chunk=None)
    return header, b"".join((first, *chunks))


async def refused(call: Receiving | Contributing) -> str:
    """Sends no more; returns the code of the refusal that must end `call`."""
    if isinstance(call, grpc.aio.StreamStreamCall):
        await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 - who fails says why
        answers = await _rest(call)
        pytest.fail(f"a refused call answered with {answers[:1]!r:.80}")
    return refusal_code(caught.value)


async def _rest(call: Receiving | Contributing) -> list[bytes]:
    """Returns what is still to come, but for the wish for an update."""
    messages: list[bytes] = []
    while isinstance(message := await call.read(), bytes):
        if message != _WANTED:
            messages.append(message)
    return messages


async def begin_round(port: OpenServer, *channels: grpc.aio.Channel) -> None:
    """Has every party ask for the first model, so that round 1 runs."""
    calls = [receive(port, channel) for channel in channels]
    for call in calls:
        assert await model_of(call)


async def until(condition: Callable[[], bool]) -> None:
    """Lets everybody else work until something is so."""
    while not condition():  # noqa: ASYNC110 - the other side has no event to give
        await asyncio.sleep(0)


def report(examples: int = 1, **sums: float) -> EvaluationReport:
    """Returns an evaluation."""
    return EvaluationReport(examples=examples, sums=sums)
