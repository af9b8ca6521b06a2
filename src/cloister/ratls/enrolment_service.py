"""The enrolment port: carries the challenge's messages over gRPC.

One call is one enrolment. The server's side ends every failure with a `Refusal`, so the
client learns why, and logs it; a client that refuses the server tells it the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import grpc
from structlog.typing import FilteringBoundLogger
from typing_extensions import override

from cloister.attestation.claims import SgxMeasurements
from cloister.errors import CloisterError, ProtocolError, RefusedByPeer
from cloister.plan.site import Address
from cloister.ratls.admission import AdmissionAuthority, AdmissionTable, AttestedPeer
from cloister.ratls.challenge import (
    MAX_MESSAGE_BYTES,
    Admission,
    Answer,
    Challenge,
    ClientProof,
    FromClient,
    FromServer,
    Hello,
    Refusal,
    ServerProof,
    decode_from_client,
    decode_from_server,
    decode_message,
    encode_message,
)
from cloister.ratls.channels import open_channel
from cloister.ratls.enrolment import ClientEnrolment, ServerEnrolment
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node
from cloister.ratls.refusals import one_line, refusal_from, refused_by_peer

METHOD = "/cloister.Enrolment/Enrol"

# A node that does not finish its handshake in this time holds a place for nothing.
HANDSHAKE_SECONDS = 30.0
# How long a refusal may take to reach a server; it is told as a courtesy.
_COURTESY_SECONDS = 5.0

Messages = AsyncIterator[bytes]
Call: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"
_FromClient = TypeVar("_FromClient", Hello, Answer, ClientProof)
_FromServer = TypeVar("_FromServer", Challenge, ServerProof, Admission)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What a client has after a successful enrolment.

    Attributes:
        server: The attested server.
        server_certificate: Its pinned certificate, DER.
        admission_certificate: This node's certificate for the training port, DER.
    """

    server: AttestedPeer
    server_certificate: bytes
    admission_certificate: bytes


class EnrolmentService(grpc.GenericRpcHandler):
    """The server's end of the enrolment port.

    Args:
        node: The server's own node.
        authority: Issues the admission certificates.
        table: Receives the admitted peers.
        log: One line for each decision.
        on_admitted: Told of every admitted peer.
    """

    def __init__(
        self,
        node: Node,
        *,
        authority: AdmissionAuthority,
        table: AdmissionTable,
        log: FilteringBoundLogger,
        on_admitted: Callable[[AttestedPeer], None],
    ) -> None:
        self._node = node
        self._authority = authority
        self._table = table
        self._log = log
        self._on_admitted = on_admitted

    @override
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if handler_call_details.method != METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(self._enrol)

    async def _enrol(
        self, requests: Messages, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        address = context.peer()
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                async for reply in self._steps(requests):
                    yield encode_message(reply)
        except TimeoutError:
            self._log.warning("enrolment-timeout", address=address)
        except RefusedByPeer as error:
            self._log.warning(
                "refused-by-peer", address=address, code=error.code, reason=str(error)
            )
        except CloisterError as error:
            self._log.warning(
                "peer-refused", address=address, code=error.code, reason=str(error)
            )
            yield encode_message(refusal_from(error))

    async def _steps(self, requests: Messages) -> AsyncIterator[FromServer]:
        enrolment = ServerEnrolment(
            self._node, authority=self._authority, table=self._table
        )
        hello = await _next_from_client(requests, Hello)
        yield enrolment.challenge(hello)
        answer = await _next_from_client(requests, Answer)
        yield enrolment.prove(answer)
        proof = await _next_from_client(requests, ClientProof)
        await asyncio.to_thread(self._node.fetch_collateral, proof.quote)
        peer, admission = enrolment.admit(proof)
        self._log.info("peer-admitted", **describe_peer(peer))
        self._on_admitted(peer)
        yield admission


async def enrol(node: Node, address: Address) -> Enrolled:
    """Enrols `node` with the server at `address`.

    Raises:
        VerificationError: If this node refuses the server, or is refused by it.
        ProtocolError: If the server cannot be reached or breaks off.
    """
    enrolment = ClientEnrolment(node)
    unverified_certificate = await fetch_unverified_certificate(address)
    try:
        # In a thread: collateral may have to be fetched.
        certificate = await asyncio.to_thread(enrolment.pin, unverified_certificate)
    except CloisterError as error:
        await _tell_refusal(error, address, unverified_certificate)
        raise
    channel = open_channel(
        address, pinned_certificate=certificate.der, max_message_bytes=MAX_MESSAGE_BYTES
    )
    async with channel:
        call: Call = channel.stream_stream(METHOD)(timeout=HANDSHAKE_SECONDS)
        try:
            await call.write(encode_message(enrolment.hello()))
            challenge = await _next_from_server(call, Challenge)
            await call.write(encode_message(enrolment.answer(challenge)))
            server_proof = await _next_from_server(call, ServerProof)
            await asyncio.to_thread(node.fetch_collateral, server_proof.quote)
            await call.write(encode_message(enrolment.prove(server_proof)))
            server, admission = enrolment.finish(
                await _next_from_server(call, Admission)
            )
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise _broken_off(str(address), error) from error
        except RefusedByPeer:
            raise
        except CloisterError as error:
            await _refuse(call, error)
            raise
    return Enrolled(
        server=server,
        server_certificate=certificate.der,
        admission_certificate=admission,
    )


def describe_peer(peer: AttestedPeer) -> dict[str, str | int | bool | dict[str, str]]:
    """Returns what a log says of an attested peer: public values only."""
    claims = peer.verdict.claims
    measured = claims.measurements
    return {
        "peer": peer.party,
        "peer_role": peer.role,
        "epoch": peer.epoch,
        "tee": claims.tee,
        "simulated": claims.simulated,
        "tcb_status": claims.tcb_status,
        "measurements": {"mr_enclave": measured.mr_enclave}
        if isinstance(measured, SgxMeasurements)
        else {
            "mrtd": measured.mrtd,
            "rtmr0": measured.rtmr0,
            "rtmr1": measured.rtmr1,
            "rtmr2": measured.rtmr2,
        },
    }


async def _next_from_client(
    requests: Messages, wanted: type[_FromClient]
) -> _FromClient:
    raw = await anext(aiter(requests), None)
    if raw is None:
        raise _out_of_order(wanted.__name__, "the end of the call")
    message: FromClient = decode_message(raw, decode_from_client)
    if isinstance(message, Refusal):
        raise refused_by_peer("the client", message)
    if not isinstance(message, wanted):
        raise _out_of_order(wanted.__name__, type(message).__name__)
    return message


async def _next_from_server(call: Call, wanted: type[_FromServer]) -> _FromServer:
    raw = await call.read()
    if not isinstance(raw, bytes):  # grpc.aio.EOF
        raise _out_of_order(wanted.__name__, "the end of the call")
    message: FromServer = decode_message(raw, decode_from_server)
    if isinstance(message, Refusal):
        raise refused_by_peer("the server", message)
    if not isinstance(message, wanted):
        raise _out_of_order(wanted.__name__, type(message).__name__)
    return message


async def _tell_refusal(
    error: CloisterError, address: Address, unverified_certificate: bytes
) -> None:
    """Tells a server why it is refused; it learns the reason and nothing else."""
    try:
        channel = open_channel(
            address,
            pinned_certificate=unverified_certificate,
            max_message_bytes=MAX_MESSAGE_BYTES,
        )
        async with channel:
            call: Call = channel.stream_stream(METHOD)(timeout=_COURTESY_SECONDS)
            await _refuse(call, error)
    except grpc.aio.UsageError:
        return  # courtesy only: whoever it is may as well not listen


async def _refuse(call: Call, error: CloisterError) -> None:
    """Says why, and waits for the server to hang up, so that it has read it."""
    try:
        async with asyncio.timeout(_COURTESY_SECONDS):
            await call.write(encode_message(refusal_from(error)))
            await call.done_writing()
            await call.read()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
        return  # courtesy only: the call may be over, or nobody listens


def _broken_off(
    address: str, error: grpc.aio.AioRpcError | asyncio.InvalidStateError
) -> ProtocolError:
    return ProtocolError(
        f"the server at {address} broke off the enrolment",
        code="enrolment-broken",
        got=f"{error.code().name}: {one_line((error.details() or '')[:200])}"
        if isinstance(error, grpc.aio.AioRpcError)
        else "the end of the call",
        remedy="The server's log says why; start this node again.",
    )


def _out_of_order(expected: str, got: str) -> ProtocolError:
    return ProtocolError(
        "an enrolment message is out of order",
        code="message-order",
        expected=expected,
        got=got,
    )
