"""The training port: brings the coordinator what admitted workers send.

Every call, and every message of a stream, is checked against the admission table before
anything is done with it. A failure ends the call with its reason in the status and is
logged; it disturbs no other worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NoReturn, TypeAlias

import grpc
from structlog.typing import FilteringBoundLogger
from typing_extensions import override

from cloister.errors import CloisterError, ProtocolError, VerificationError
from cloister.federation.coordinator import Coordinator, Published
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import (
    CONTRIBUTE,
    FINISH,
    RECEIVE,
    FinalReport,
    Finished,
    ModelRequest,
    UpdateHeader,
    decode_header,
    encode_header,
)
from cloister.federation.transfer import Receiver
from cloister.ratls.admission import AdmissionTable, AttestedPeer
from cloister.ratls.channels import MAX_CHUNK_BYTES, Guard
from cloister.ratls.identity import Spki
from cloister.ratls.refusals import encode_status

# Longest that a refused caller is listened to, so that it may hear its reason.
_DRAIN_SECONDS = 10.0

Messages = AsyncIterator[bytes]
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class TrainingService(grpc.GenericRpcHandler):
    """The server's end of the training port.

    Args:
        coordinator: Runs the rounds.
        table: Who is admitted.
        log: One line for each refusal.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        table: AdmissionTable,
        log: FilteringBoundLogger,
    ) -> None:
        self._coordinator = coordinator
        self._table = table
        self._log = log
        self._sending: set[Spki] = set()
        self._handlers: dict[str, Callable[[], Handler]] = {
            RECEIVE: lambda: grpc.unary_stream_rpc_method_handler(self._receive),
            CONTRIBUTE: lambda: grpc.stream_stream_rpc_method_handler(self._contribute),
            FINISH: lambda: grpc.unary_unary_rpc_method_handler(self._finish),
        }

    @override
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        make = self._handlers.get(handler_call_details.method)
        return make() if make else None

    async def _receive(self, request: bytes, context: Context) -> Messages:
        try:
            guard = Guard(context, self._table)
            wanted = decode_header(request, ModelRequest)
            model = await self._coordinator.join(guard.peer.party, wanted.layout)
            async for message in self._send(model, guard):
                yield message
        except CloisterError as error:
            await self._refuse(context, error)

    async def _contribute(self, messages: Messages, context: Context) -> Messages:
        try:
            guard = Guard(context, self._table)
            header = await self._take_update(messages, guard)
            model = await self._coordinator.next_model(after=header.round)
            async for message in self._send(model, guard):
                yield message
        except CloisterError as error:
            # The traceback holds the update's buffer; nothing is to wait with it.
            error = error.with_traceback(None)
            await self._drain(messages)
            await self._refuse(context, error)

    async def _finish(self, request: bytes, context: Context) -> bytes:
        try:
            guard = Guard(context, self._table)
            report = decode_header(request, FinalReport)
            await self._coordinator.finish(guard.peer.party, report.evaluation)
        except CloisterError as error:
            await self._refuse(context, error)
        return encode_header(Finished())

    async def _take_update(self, messages: Messages, guard: Guard) -> UpdateHeader:
        party = guard.peer.party
        first = await anext(aiter(messages), None)
        if first is None:
            raise ProtocolError(
                f"{party!r} sent nothing", code="update-empty", expected="an update"
            )
        header = decode_header(first, UpdateHeader)
        self._coordinator.check_header(party, header)
        with self._only_one(guard.peer):
            update = ModelBuffer(self._coordinator.model.layout)
            receiver = Receiver(update)
            async for chunk in messages:
                guard.check()
                receiver.feed(chunk)
                self._coordinator.traffic.received += len(chunk)
                self._coordinator.touch()
            receiver.finish()
            # The end of the stream may come long after its last chunk.
            guard.check()
            await self._coordinator.count(party, header, update)
        return header

    @contextlib.contextmanager
    def _only_one(self, peer: AttestedPeer) -> Iterator[None]:
        """Holds a node to one update in transfer: each takes a model's memory.

        A node and not its party: a newer node must not wait until the broken
        connection of the one it replaces is noticed.
        """
        if peer.tls_key in self._sending:
            raise ProtocolError(
                f"{peer.party!r} sends two updates at once",
                code="update-repeated",
                expected="one update a round",
            )
        self._sending.add(peer.tls_key)
        try:
            yield
        finally:
            self._sending.remove(peer.tls_key)

    async def _drain(self, messages: Messages) -> None:
        """Reads and drops what a refused caller still sends.

        A caller that is cut off while it sends learns only that it was cut off
        (grpc.aio puts its own failure to write in the place of our status).
        """
        left = self._coordinator.model.layout.size_bytes + MAX_CHUNK_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for message in messages:
                    left -= len(message)
                    if left < 0:
                        return

    async def _send(self, model: Published, guard: Guard) -> Messages:
        guard.check()
        yield encode_header(model.header)
        for chunk in model.chunks:
            guard.check()
            self._coordinator.traffic.sent += len(chunk)
            self._coordinator.touch()
            yield chunk

    async def _refuse(self, context: Context, error: CloisterError) -> NoReturn:
        self._log.warning(
            "call-refused", address=context.peer(), code=error.code, reason=str(error)
        )
        status = (
            grpc.StatusCode.PERMISSION_DENIED
            if isinstance(error, VerificationError)
            else grpc.StatusCode.INVALID_ARGUMENT
        )
        await context.abort(status, encode_status(error))
        raise RuntimeError("abort returned")
