"""The training port: brings the coordinator what admitted workers send.

Every call, and every message of a stream, is checked against the admission table before
anything is done with it. A failure ends the call with its reason in the status and is
logged; it disturbs no other worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import grpc
from structlog.typing import FilteringBoundLogger
from typing_extensions import override

from cloister.errors import (
    CloisterError,
    ProtocolError,
    StorageError,
    VerificationError,
)
from cloister.federation.audit import CallAudit
from cloister.federation.audit_records import Participant
from cloister.federation.coordinator import Coordinator
from cloister.federation.countersigning import verify_participant
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
from cloister.federation.published import Published
from cloister.federation.transfer import Receiver
from cloister.ratls.admission_table import AdmissionTable, Peer
from cloister.ratls.channels import MAX_CHUNK_BYTES, Guard
from cloister.ratls.identity import Spki
from cloister.ratls.node import Node
from cloister.ratls.refusal_log import RefusalLog
from cloister.ratls.refusals import encode_status, is_trouble
from cloister.ratls.unforeseen import unforeseen

# Longest that a refused caller is listened to, so that it may hear its reason.
_DRAIN_SECONDS = 10.0

Messages = AsyncIterator[bytes]
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Transfer:
    """An update on its way, which takes a model's memory.

    Attributes:
        key: The TLS key of the node that sends it.
        limit: Ends it when it expires.
        over: Set when it has ended, whichever way.
    """

    key: Spki
    limit: asyncio.Timeout
    over: asyncio.Event


class TrainingService(grpc.GenericRpcHandler):
    """The server's end of the training port.

    Args:
        node: The server's node.
        coordinator: Runs the rounds.
        table: Who is admitted.
        audit: Receives every refusal of an admitted node.
        log: One line for each refusal; they are counted where they are many.
    """

    def __init__(
        self,
        node: Node,
        coordinator: Coordinator,
        *,
        table: AdmissionTable,
        audit: CallAudit,
        log: FilteringBoundLogger,
    ) -> None:
        self._node = node
        self._audit = audit
        self._coordinator = coordinator
        self._table = table
        self._log = log
        # By party: one that floods the log must not hide another's refusals.
        self._refusals: dict[str | None, RefusalLog] = {}
        self._sending: dict[str, _Transfer] = {}
        self._handlers: dict[str, Callable[[], Handler]] = {
            RECEIVE: lambda: grpc.unary_stream_rpc_method_handler(self._receive),
            CONTRIBUTE: lambda: grpc.stream_stream_rpc_method_handler(self._contribute),
            FINISH: lambda: grpc.unary_unary_rpc_method_handler(self._finish),
        }

    @override
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        make = self._handlers.get(handler_call_details.method)
        return make() if make else None

    def close(self) -> None:
        """Tells how many refusals were not told one by one."""
        for log in self._refusals.values():
            log.close()

    async def _receive(self, request: bytes, context: Context) -> Messages:
        guard = None
        try:
            guard = Guard(context, self._table)
            wanted = decode_header(request, ModelRequest)
            model = await self._coordinator.join(guard.peer.party, wanted.layout)
            async for message in self._send(model, guard):
                yield message
        except CloisterError as error:
            await self._refuse(context, error, guard)
        except Exception as error:  # noqa: BLE001 - the edge: gRPC would send its text
            await self._refuse(context, unforeseen(error), guard)

    async def _contribute(self, messages: Messages, context: Context) -> Messages:
        guard = None
        try:
            guard = Guard(context, self._table)
            header = await self._take_update(messages, guard)
            model = await self._coordinator.next_model(
                guard.peer.party, after=header.round
            )
            async for message in self._send(model, guard):
                yield message
        except CloisterError as error:
            # The traceback holds the update's buffer, and so does that of what came
            # before; nothing is to wait with it.
            error = error.with_traceback(None)
            error.__cause__ = error.__context__ = None
            await self._drain(messages)
            await self._refuse(context, error, guard)
        except Exception as error:  # noqa: BLE001 - the edge: gRPC would send its text
            await self._refuse(context, unforeseen(error), guard)

    async def _finish(self, request: bytes, context: Context) -> bytes:
        guard = None
        try:
            guard = Guard(context, self._table)
            report = decode_header(request, FinalReport)
            model = self._coordinator.check_report(guard.peer.party, report.evaluation)
            by = self._participant(report.countersignature, guard, model)
            await self._coordinator.finish(by, report.evaluation)
        except CloisterError as error:
            await self._refuse(context, error, guard)
        except Exception as error:  # noqa: BLE001 - the edge: gRPC would send its text
            await self._refuse(context, unforeseen(error), guard)
        return encode_header(Finished())

    async def _take_update(self, messages: Messages, guard: Guard) -> UpdateHeader:
        party = guard.peer.party
        first = await anext(aiter(messages), None)
        if first is None:
            raise ProtocolError(
                f"{party!r} sent nothing", code="update-empty", expected="an update"
            )
        header = decode_header(first, UpdateHeader)
        # The header may come late: only the party's newest node ends the others.
        guard.check()
        model = self._coordinator.check_header(party, header)
        by = self._participant(header.countersignature, guard, model)
        async with self._only_one(guard.peer):
            await self._coordinator.count(
                by, header, await self._whole_update(messages, guard)
            )
        return header

    def _participant(
        self, unverified_signature: bytes, guard: Guard, model: ModelHeader
    ) -> Participant:
        return verify_participant(
            unverified_signature,
            peer=guard.peer,
            header=model,
            run_id=self._node.plan.run_id,
            plan_hash=self._node.plan_hash,
        )

    async def _whole_update(self, messages: Messages, guard: Guard) -> ModelBuffer:
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
        return update

    @asynccontextmanager
    async def _only_one(self, peer: Peer) -> AsyncIterator[None]:
        """Holds a party to one update in transfer: each takes a model's memory.

        A newer node must not wait until the broken connection of the one it replaces
        is noticed; so it ends the other's transfer, and begins when that has ended.
        """
        former = self._sending.get(peer.party)
        if former is not None and former.key == peer.tls_key:
            raise ProtocolError(
                f"{peer.party!r} sends two updates at once",
                code="update-repeated",
                expected="one update a round",
            )
        try:
            async with asyncio.timeout(None) as limit:
                own = _Transfer(key=peer.tls_key, limit=limit, over=asyncio.Event())
                self._sending[peer.party] = own
                try:
                    if former is not None:
                        former.limit.reschedule(asyncio.get_running_loop().time())
                        await former.over.wait()
                    yield
                finally:
                    own.over.set()
                    if self._sending[peer.party] is own:
                        del self._sending[peer.party]
        except TimeoutError:
            raise VerificationError(
                f"a newer node of {peer.party!r} sends its update",
                code="epoch-old",
                expected="the party's newest node",
                got=f"epoch {peer.epoch}",
            ) from None

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

    async def _refuse(
        self, context: Context, error: CloisterError, guard: Guard | None
    ) -> NoReturn:
        whose = guard.peer.party if guard is not None else None
        log = self._refusals.setdefault(whose, RefusalLog(self._log))
        log.warning(
            "call-refused", address=context.peer(), code=error.code, reason=str(error)
        )
        if guard is not None:
            await self._record(guard.peer, error)
        status = (
            grpc.StatusCode.PERMISSION_DENIED
            if isinstance(error, VerificationError)
            else grpc.StatusCode.INVALID_ARGUMENT
        )
        await context.abort(status, encode_status(error))
        raise RuntimeError("abort returned")

    async def _record(self, peer: Peer, error: CloisterError) -> None:
        """Records a refusal of an admitted node; of a failed run it is none.

        Nor is what stops this side a word about the other.
        """
        if error is self._coordinator.failure or is_trouble(error):
            return
        try:
            self._audit.call_refused(peer, error)
        except StorageError as unwritable:
            if self._coordinator.failure is None:
                await self._coordinator.fail(unwritable)
