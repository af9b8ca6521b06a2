"""A worker's calls on the training port.

A call is one conversation in a fixed order (`messages.py`); the worker says its part,
then listens. So the server's reason is read in one place only, wherever in the order it
comes, and a call leaves no task behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TypeAlias, TypeVar

import grpc
import msgspec

from cloister.errors import ProtocolError, RefusedByPeer
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import (
    CONTRIBUTE,
    FINISH,
    RECEIVE,
    FinalReport,
    Finished,
    Header,
    ModelHeader,
    ModelRequest,
    UpdateHeader,
    UpdateWanted,
    decode_header,
    encode_header,
)
from cloister.federation.rounds.checks import check_layout
from cloister.federation.updates import ModelReceiver
from cloister.federation.wire_format import WireFormat
from cloister.ratls.admission_table import Peer
from cloister.ratls.refusals import decode_status, one_line, refused_by_peer

# The code of a call that ended without any reason of the server's.
SERVER_GONE = "server-gone"

_UnaryStream: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]"
_StreamStream: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"
_UnaryUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
_Sending: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"
_Reply: TypeAlias = "grpc.aio.UnaryStreamCall[bytes, bytes] | _Sending"
_Call = TypeVar("_Call", bound=grpc.aio.Call)
_Kind = TypeVar("_Kind", bound=Header)


class Line:
    """A worker's calls to one attested server; models land in one buffer.

    Args:
        channel: The channel to the training port.
        server: The server at its other end.
        model: Receives every model; counts when a call has returned its header.
        wire: How models and updates travel.

    Attributes:
        server: The server.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        server: Peer,
        *,
        model: ModelBuffer,
        wire: WireFormat,
    ) -> None:
        self.server = server
        self._receive: _UnaryStream = channel.unary_stream(RECEIVE)
        self._contribute: _StreamStream = channel.stream_stream(CONTRIBUTE)
        self._finish: _UnaryUnary = channel.unary_unary(FINISH)
        self._model = model
        self._wire = wire
        self._layout = model.layout.digest()

    async def receive(self) -> ModelHeader:
        """Asks for the current model; returns once there is one for this node.

        Raises:
            ProtocolError: If the server refuses the request, goes away, or sends
                anything but a model.
            RefusedByPeer: If it does not let this node take part.
        """
        request = encode_header(ModelRequest(layout=self._layout))
        with _conversation(self._receive(request)) as call:
            return await self._take_model(call)

    async def contribute(
        self, header: UpdateHeader, update: ModelBuffer, *, at_once: bool
    ) -> ModelHeader:
        """Sends an update as soon as it is wanted; receives the next model.

        Args:
            header: What is said of the update.
            update: The update.
            at_once: Whether it is wanted already, as the model's header says.

        Raises:
            ProtocolError: If the server refuses the update, goes away, or does not
                keep to the order of the call.
            RefusedByPeer: If it does not let this node take part.
        """
        at_once = at_once and self._wire.chunk_count > 0
        with _conversation(self._contribute()) as call:
            if at_once:
                first = self._wire.encode(update, 0)
                header = msgspec.structs.replace(header, first_chunk=first)
            await _begin(call, encode_header(header))
            if not at_once:
                _header(await _read(call), UpdateWanted)
            await self._send(call, update, start=1 if at_once else 0)
            return await self._take_model(call)

    async def finish(self, report: FinalReport) -> None:
        """Sends the report on the final model.

        Raises:
            ProtocolError: If the server refuses it, or goes away.
            RefusedByPeer: If it does not let this node take part.
        """
        with _conversation(self._finish(encode_header(report))) as call:
            # None from a server that ends the call well and says nothing.
            reply: bytes | None = await call
            _header(reply, Finished)

    async def _send(self, call: _Sending, update: ModelBuffer, *, start: int) -> None:
        """Sends the chunks from `start` on; none is made before the last is away."""
        with _unless_over():
            for number in range(start, self._wire.chunk_count):
                await call.write(self._wire.encode(update, number))
            await call.done_writing()

    async def _take_model(self, call: _Reply) -> ModelHeader:
        header = _header(
            await _read(call), ModelHeader, chunk_bytes=self._wire.chunk_bytes
        )
        check_layout("the server", expected=self._layout, got=header.layout)
        receiver = ModelReceiver(self._wire, self._model)
        if header.first_chunk is not None:
            receiver.feed(header.first_chunk)
            header = msgspec.structs.replace(header, first_chunk=None)
        while (chunk := await _read(call)) is not None:
            receiver.feed(chunk)
        receiver.finish()
        return header


@contextlib.contextmanager
def _conversation(call: _Call) -> Iterator[_Call]:
    """Has what ends a call raised as our own error, and leaves no call open."""
    try:
        yield call
    except grpc.aio.AioRpcError as error:
        raise _explain(error) from error
    except asyncio.CancelledError:
        # gRPC raises it also for a call that the other side cancelled. Taken for a
        # cancellation of ours, it would end this node without a word.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _gone("CANCELLED", "") from None
    finally:
        # Also where this side has ended it, with an error or because it was cancelled.
        call.cancel()


@contextlib.contextmanager
def _unless_over() -> Iterator[None]:
    """Ends the block early if the server has ended the call: reading says why."""
    with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.InternalError):
        yield


async def _begin(call: _Sending, message: bytes) -> None:
    """Sends the first message, unless the call ends before it has begun.

    gRPC lets such a write wait for ever.
    """
    with _unless_over():
        writing = asyncio.ensure_future(call.write(message))

        def stop(_: object) -> None:
            writing.cancel()

        call.add_done_callback(stop)
        try:
            await writing
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise


def _header(message: bytes | None, kind: type[_Kind], *, chunk_bytes: int = 0) -> _Kind:
    if message is None:
        raise ProtocolError(
            "the server ended the call before its time",
            code="call-short",
            expected=kind.__name__,
            got="nothing more",
        )
    return decode_header(message, kind, chunk_bytes=chunk_bytes)


async def _read(call: _Reply) -> bytes | None:
    """Returns the next message; None when the server has said all.

    Raises:
        AioRpcError: If the call broke, or the server ended it with a reason.
    """
    message = await call.read()
    return message if isinstance(message, bytes) else None


def _explain(error: grpc.aio.AioRpcError) -> ProtocolError | RefusedByPeer:
    """Returns our own error for a call the server ended, or that broke."""
    if error.code() is grpc.StatusCode.PERMISSION_DENIED:
        return refused_by_peer("the server", decode_status(error.details()))
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        refusal = decode_status(error.details())
        return ProtocolError(
            f"the server ended the call: {refusal.what}",
            code=refusal.code,
            expected=refusal.expected,
            got=refusal.got,
        )
    return _gone(error.code().name, error.details() or "")


def _gone(status: str, details: str) -> ProtocolError:
    return ProtocolError(
        "the server went away",
        code=SERVER_GONE,
        expected="an answer",
        got=f"{status}: {one_line(details[:200])}",
        remedy="Its log says why; start it again, and it goes on.",
    )
