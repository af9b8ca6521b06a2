"""A worker's calls on the training port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc

from cloister.errors import ProtocolError, RefusedByPeer
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import (
    CONTRIBUTE,
    FINISH,
    RECEIVE,
    FinalReport,
    Finished,
    ModelHeader,
    ModelRequest,
    UpdateHeader,
    decode_header,
    encode_header,
)
from cloister.federation.rounds import check_layout
from cloister.federation.transfer import Receiver, chunks_of
from cloister.ratls.admission_table import Peer
from cloister.ratls.refusals import decode_status, one_line, refused_by_peer

# The code of a call that ended without any reason of the server's.
SERVER_GONE = "server-gone"

_Reply: TypeAlias = (
    "grpc.aio.UnaryStreamCall[bytes, bytes] | grpc.aio.StreamStreamCall[bytes, bytes]"
)
_UnaryStream: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]"
_StreamStream: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"
_UnaryUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


class Line:
    """A worker's calls to one attested server; models land in one buffer.

    Args:
        channel: The channel to the training port.
        server: The server at its other end.
        model: Receives every model.

    Attributes:
        server: The server.
    """

    def __init__(
        self, channel: grpc.aio.Channel, server: Peer, model: ModelBuffer
    ) -> None:
        self.server = server
        self._receive: _UnaryStream = channel.unary_stream(RECEIVE)
        self._contribute: _StreamStream = channel.stream_stream(CONTRIBUTE)
        self._finish: _UnaryUnary = channel.unary_unary(FINISH)
        self._model = model
        self._layout = model.layout.digest()

    async def receive(self) -> ModelHeader:
        """Asks for the current model; returns once all workers have come."""
        request = encode_header(ModelRequest(layout=self._layout))
        return await self._take_model(self._receive(request))

    async def contribute(
        self, header: UpdateHeader, update: ModelBuffer
    ) -> ModelHeader:
        """Sends an update and receives the next round's model."""

        async def messages() -> AsyncIterator[bytes]:
            yield encode_header(header)
            for chunk in chunks_of(update):
                yield chunk

        return await self._take_model(self._contribute(messages()))

    async def finish(self, report: FinalReport) -> None:
        """Sends the report on the final model."""
        try:
            reply = await self._finish(encode_header(report))
        except grpc.aio.AioRpcError as error:
            raise _explain(error) from error
        decode_header(reply, Finished)

    async def _take_model(self, reply: _Reply) -> ModelHeader:
        receiver = Receiver(self._model)
        header: ModelHeader | None = None
        try:
            async for message in reply:
                if header is None:
                    header = decode_header(message, ModelHeader)
                    check_layout("the server", expected=self._layout, got=header.layout)
                else:
                    receiver.feed(message)
        except grpc.aio.AioRpcError as error:
            raise _explain(error) from error
        if header is None:
            raise ProtocolError("the server sent no model", code="model-missing")
        receiver.finish()
        return header


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
    return ProtocolError(
        "the server went away",
        code=SERVER_GONE,
        expected="an answer",
        got=f"{error.code().name}: {one_line((error.details() or '')[:200])}",
        remedy="Its log says why; start the run again.",
    )
