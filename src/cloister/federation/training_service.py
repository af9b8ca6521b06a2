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
import msgspec
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
from cloister.federation.call_limits import CallLimits
from cloister.federation.contribution import Context, Contribution, Messages
from cloister.federation.coordinator import Coordinator
from cloister.federation.countersigning import verify_participant
from cloister.federation.intake import Intake
from cloister.federation.messages import (
    CONTRIBUTE,
    FINISH,
    RECEIVE,
    FinalReport,
    Finished,
    ModelHeader,
    ModelRequest,
    UpdateHeader,
    UpdateWanted,
    decode_header,
    encode_header,
)
from cloister.federation.published import Published, stopped
from cloister.federation.rounds.refusals import NO_FAULT
from cloister.federation.staging import Place
from cloister.federation.updates import Receiver, Update
from cloister.ratls.admission_table import AdmissionTable, Peer
from cloister.ratls.channels import MAX_CHUNK_BYTES, Guard
from cloister.ratls.identity import Spki
from cloister.ratls.node import Node
from cloister.ratls.refusal_log import RefusalLog
from cloister.ratls.refusals import encode_status, is_trouble
from cloister.ratls.unforeseen import unforeseen

# Longest that a refused caller is listened to, so that it may hear its reason.
_DRAIN_SECONDS = 10.0
# Longest that one chunk may take to be taken: others may wait for its memory.
_STALL_SECONDS = 60.0

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
        self._limits = CallLimits()
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

    async def _receive(self, request: bytes, context: Context) -> None:
        guard = None
        try:
            guard = Guard(context, self._table)
            with self._limits.call(guard.peer):
                wanted = decode_header(request, ModelRequest)
                model = await self._coordinator.join(guard.peer.party, wanted.layout)
                await self._send(model, context, guard)
        except grpc.aio.InternalError:
            return  # what a write meets when the caller is gone: nobody is to be told
        except CloisterError as error:
            await self._refuse(context, error, guard)
        except Exception as error:  # noqa: BLE001 - the edge: gRPC would send its text
            await self._refuse(context, unforeseen(error), guard)

    async def _contribute(self, messages: Messages, context: Context) -> None:
        guard = None
        # Where updates come at once, chunks may be on their way before one is read.
        at_once = self._coordinator.first_chunk_bytes > 0
        call = Contribution(messages=messages, context=context, wanted=at_once)
        try:
            guard = Guard(context, self._table)
            with self._limits.call(guard.peer):
                await self._take_and_answer(call, guard)
        except grpc.aio.InternalError:
            return  # as above
        except CloisterError as error:
            # The traceback holds the update's chunks, and so does that of what came
            # before; nothing is to wait with it.
            error = error.with_traceback(None)
            error.__cause__ = error.__context__ = None
            call.first_chunk = None
            if call.wanted:
                await self._drain(messages)
            await self._refuse(context, error, guard)
        except Exception as error:  # noqa: BLE001 - the edge: gRPC would send its text
            call.first_chunk = None
            await self._refuse(context, unforeseen(error), guard)

    async def _finish(self, request: bytes, context: Context) -> bytes:
        guard = None
        try:
            guard = Guard(context, self._table)
            with self._limits.call(guard.peer):
                await self._take_report(decode_header(request, FinalReport), guard)
        except CloisterError as error:
            await self._refuse(context, error, guard)
        except Exception as error:  # noqa: BLE001 - the edge: gRPC would send its text
            await self._refuse(context, unforeseen(error), guard)
        return encode_header(Finished())

    async def _take_report(self, report: FinalReport, guard: Guard) -> None:
        model = self._coordinator.check_report(guard.peer.party, report.evaluation)
        by = self._participant(report.countersignature, guard, model)
        self._coordinator.finish(by, report.evaluation)
        await self._coordinator.until_sealed(by.party)

    async def _take_and_answer(self, call: Contribution, guard: Guard) -> None:
        party = guard.peer.party
        header, by = await self._header(call, guard)
        with self._coordinator.waiting(party):
            async with self._only_one(guard.peer):
                await self._take_update(call, guard, header, by)
            model = await self._coordinator.next_model(party, after=header.round)
        await self._send(model, call.context, guard)

    async def _header(
        self, call: Contribution, guard: Guard
    ) -> tuple[UpdateHeader, Participant]:
        """Returns the header of an update that can count, and whose it is."""
        party = guard.peer.party
        first = await anext(aiter(call.messages), None)
        if first is None:
            raise ProtocolError(
                f"{party!r} sent nothing", code="update-empty", expected="an update"
            )
        header = decode_header(
            first, UpdateHeader, chunk_bytes=self._coordinator.first_chunk_bytes
        )
        call.wanted = header.first_chunk is not None
        # The header may come late: only the party's newest node ends the others.
        guard.check()
        model = self._coordinator.check_header(party, header)
        by = self._participant(header.countersignature, guard, model)
        call.first_chunk = header.first_chunk
        return msgspec.structs.replace(header, first_chunk=None), by

    async def _take_update(
        self,
        call: Contribution,
        guard: Guard,
        header: UpdateHeader,
        by: Participant,
    ) -> None:
        """Has the update sent when there is room for it, and counts it."""
        coordinator, party = self._coordinator, guard.peer.party
        intake = coordinator.intake(party, header)
        async with intake.staging.place(party) as place:
            guard.check()
            coordinator.check_header(party, header)
            if not call.wanted:
                call.wanted = True
                await call.context.write(encode_header(UpdateWanted()))
            update = await self._whole_update(call, guard, intake, place)
            coordinator.count(by, header, update=update, place=place)

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

    async def _whole_update(
        self, call: Contribution, guard: Guard, intake: Intake, place: Place
    ) -> Update:
        receiver = Receiver(self._coordinator.wire, limits=intake.limits)
        place.drop = receiver.drop

        def feed(chunk: bytes) -> None:
            guard.check()
            place.check()
            receiver.feed(chunk)
            self._coordinator.traffic.received += len(chunk)
            self._coordinator.touch()

        if (first := call.take_first_chunk()) is not None:
            feed(first)
            del first
        async for chunk in call.messages:
            feed(chunk)
            early = receiver.number * self._coordinator.wire.chunk_bytes
            if early >= intake.staging.early_bytes and not receiver.whole:
                await place.turn.wait()
        place.check()
        update = receiver.finish()
        # The end of the stream may come long after its last chunk.
        guard.check()
        return update

    @asynccontextmanager
    async def _only_one(self, peer: Peer) -> AsyncIterator[None]:
        """Holds a party to one update in transfer: each takes a model's memory.

        A node that comes back after its network was cut must not wait until the broken
        connection is noticed, nor must one that takes another's place; so whoever comes
        ends the transfer under way, and begins when that has ended.
        """
        former = self._sending.get(peer.party)
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
                    if self._sending.get(peer.party) is own:
                        del self._sending[peer.party]
        except TimeoutError:
            raise _taken_over(peer, by=self._sending.get(peer.party)) from None

    async def _drain(self, messages: Messages) -> None:
        """Reads and drops what a refused caller still sends.

        A caller that is cut off while it sends learns only that it was cut off
        (grpc.aio puts its own failure to write in the place of our status).
        """
        left = self._coordinator.wire.size_bytes + MAX_CHUNK_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for message in messages:
                    left -= len(message)
                    if left < 0:
                        return

    async def _send(self, model: Published, context: Context, guard: Guard) -> None:
        traffic, left = self._coordinator.traffic, self._coordinator.wire.size_bytes
        for number in range(model.message_count):
            # A chunk takes memory until it is on its way, so only some are at once.
            async with self._limits.chunk(guard.peer):
                message = model.message(number)
                guard.check()
                await self._write(context, message)
            # The first one is a little more: the header, which is no payload.
            chunk_bytes = min(left, self._coordinator.wire.chunk_bytes)
            left -= chunk_bytes
            traffic.sent += chunk_bytes
            self._coordinator.touch()

    async def _write(self, context: Context, chunk: bytes) -> None:
        try:
            async with asyncio.timeout(_STALL_SECONDS):
                await context.write(chunk)
        except TimeoutError:
            raise ProtocolError(
                "a receiver stalls",
                code="transfer-stalled",
                expected=f"{len(chunk)} bytes taken within {_STALL_SECONDS:g} s",
            ) from None

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
        told = self._as_told(error)
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await context.abort(status, encode_status(told))
        except TimeoutError:
            # It reads nothing, so not that either; gRPC drops a call that is cancelled.
            raise asyncio.CancelledError from None
        raise RuntimeError("abort returned")

    def _as_told(self, error: CloisterError) -> CloisterError:
        """Returns what a worker is told, which goes by the code.

        Where the run failed of this side's storage, another server goes on from what is
        there as soon as that is mended: nobody else need end. What is wrong with a disk
        is no worker's business.
        """
        if error is self._coordinator.failure and isinstance(error, StorageError):
            return stopped()
        return error

    async def _record(self, peer: Peer, error: CloisterError) -> None:
        """Records a refusal of an admitted node; of a failed run it is none.

        Nor is what stops this side a word about the other, nor that one is late.
        """
        if error is self._coordinator.failure or is_trouble(error):
            return
        if error.code in NO_FAULT:
            return
        try:
            self._audit.call_refused(peer, error)
        except StorageError as unwritable:
            if self._coordinator.failure is None:
                await self._coordinator.fail(unwritable)


def _taken_over(
    peer: Peer, *, by: _Transfer | None
) -> ProtocolError | VerificationError:
    if by is not None and by.key != peer.tls_key:
        return VerificationError(
            f"a newer node of {peer.party!r} sends its update",
            code="epoch-old",
            expected="the party's newest node",
            got=f"epoch {peer.epoch}",
        )
    return ProtocolError(
        f"{peer.party!r} began to send its update once more",
        code="update-repeated",
        expected="one update a round",
    )
