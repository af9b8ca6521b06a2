"""An attested server that does not keep to the protocol, or does not stay.

It plays a script on its training port, whatever a worker sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TypeAlias

import grpc
from tests.support.audit import RecordedDoor
from tests.support.federation_in_memory import START
from tests.support.recorded_log import RecordedLog
from tests.support.whole_run import Scene, task
from typing_extensions import override

from cloister.errors import ProtocolError, VerificationError
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import (
    CONTRIBUTE,
    FINISH,
    FinalReport,
    ModelHeader,
    UpdateHeader,
    UpdateWanted,
    decode_header,
    encode_header,
)
from cloister.ratls.admission import new_authority
from cloister.ratls.admission_table import AdmissionTable
from cloister.ratls.certificate import make_certificate
from cloister.ratls.channels import (
    MAX_CHUNK_BYTES,
    enrolment_credentials,
    listen,
    server_options,
    training_credentials,
)
from cloister.ratls.enrolment_service import EnrolmentService
from cloister.ratls.limits import USUAL_LIMITS, Limits
from cloister.ratls.node import Node
from cloister.ratls.refusals import encode_status

LIFE = timedelta(days=1)
LAYOUT = task().layout()
Answer: TypeAlias = Callable[[int], list[bytes]]
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


def model(
    number: int,
    *,
    layout: str = LAYOUT.digest(),
    final: bool = False,
    state: bytes | None = 32 * b"\1",
    audit_head: bytes | None = None,
) -> list[bytes]:
    """Returns a good model of a round, as messages."""
    header = ModelHeader(
        round=number,
        layout=layout,
        evaluate=False,
        final=final,
        audit_head=audit_head or bytes([number % 256]) * 32,
        state=state,
    )
    return [encode_header(header), ModelBuffer(LAYOUT).data.tobytes()]


class OddTraining(grpc.GenericRpcHandler):
    """Answers the n-th call with what it was given, whatever the worker sends.

    Args:
        answer: The messages of each call; after an update, those that follow it.
        lapses: Which calls end with a refusal instead, and with which.
        refusals: The same for refusals of the message, not of the node.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        lapses: Mapping[int, str] = {},
        refusals: Mapping[int, str] = {},
    ) -> None:
        self._answer = answer
        self._lapses = lapses
        self._refusals = refusals
        self._calls = 0
        self.headers: list[UpdateHeader] = []
        self.reports: list[FinalReport] = []
        self.updates: list[bytes] = []

    @override
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        if handler_call_details.method == FINISH:
            return grpc.unary_unary_rpc_method_handler(self._finish)
        if handler_call_details.method == CONTRIBUTE:
            return grpc.stream_stream_rpc_method_handler(self._take)
        return grpc.stream_stream_rpc_method_handler(self._talk)

    async def _take(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        received = [await anext(messages)]
        yield encode_header(UpdateWanted())
        received += [message async for message in messages]
        self.headers.append(decode_header(received[0], UpdateHeader))
        self.updates.append(b"".join(received))
        async for message in self._talk(messages, context):
            yield message

    async def _talk(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        async for _ in messages:
            pass
        await self.call(context)
        for message in self._answer(self._calls):
            yield message

    async def call(self, context: Context) -> None:
        """Counts a call, and ends it if it is one of those."""
        self._calls += 1
        if self._calls in self._lapses:
            await self.lapse(context, self._lapses[self._calls])
        if self._calls in self._refusals:
            refusal = ProtocolError("no", code=self._refusals[self._calls])
            status = grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(status, encode_status(refusal))

    async def lapse(self, context: Context, code: str) -> None:
        error = VerificationError("out", code=code)
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, encode_status(error))

    async def _finish(self, request: bytes, context: Context) -> bytes:
        await self.call(context)
        self.reports.append(decode_header(request, FinalReport))
        return self._answer(-1)[0]


class MortalTraining(OddTraining):
    """Dies in its n-th call: says nothing more, and is gone as soon as it is let.

    Args:
        answer: As for every other.
        dies_at: The call.

    Attributes:
        dying: Set when that call has come.
    """

    def __init__(self, answer: Answer, *, dies_at: int) -> None:
        super().__init__(answer)
        self._dies_at = dies_at
        self.dying = asyncio.Event()

    @override
    async def call(self, context: Context) -> None:
        await super().call(context)
        if self._calls == self._dies_at:
            await self.die()

    async def die(self) -> None:
        """Waits for the end."""
        self.dying.set()
        await asyncio.Event().wait()


@asynccontextmanager
async def odd_server(
    node: Node,
    scene: Scene,
    training: grpc.GenericRpcHandler,
    *,
    limits: Limits = USUAL_LIMITS,
) -> AsyncIterator[tuple[grpc.aio.Server, grpc.aio.Server]]:
    """Opens an attested server with a training port of its own ideas; lends both."""
    certificate = make_certificate(node.identity, node.platform, at=START, life=LIFE)
    authority = new_authority(at=START, life=LIFE)
    enrolment = EnrolmentService(
        node,
        authority=authority,
        table=AdmissionTable(node.clock),
        audit=RecordedDoor(),
        log=RecordedLog().logger(),
        on_admitted=lambda _: None,
        limits=limits,
    )
    ports = (
        (
            scene.training,
            training,
            training_credentials(
                node.identity,
                certificate,
                admission_root_pem=authority.certificate_pem(),
            ),
        ),
        (
            scene.enrolment,
            enrolment,
            enrolment_credentials(node.identity, certificate),
        ),
    )
    servers: list[grpc.aio.Server] = []
    for address, handler, credentials in ports:
        server = grpc.aio.server(options=server_options(2 * MAX_CHUNK_BYTES))
        server.add_generic_rpc_handlers((handler,))
        listen(server, address, credentials)
        await server.start()
        servers.append(server)
    try:
        yield servers[0], servers[1]
    finally:
        for server in servers:
            await server.stop(0)
