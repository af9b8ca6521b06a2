"""The client's end of the enrolment port."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc

from cloister.errors import (
    CloisterError,
    PeerInTrouble,
    RefusedByPeer,
    VerificationError,
)
from cloister.plan.site import Address
from cloister.ratls.certificate import EvidenceCertificate
from cloister.ratls.challenge import (
    MAX_MESSAGE_BYTES,
    Admission,
    Challenge,
    ServerProof,
    decode_from_server,
    encode_message,
)
from cloister.ratls.channels import open_channel
from cloister.ratls.client_enrolment import Admittance, ClientEnrolment
from cloister.ratls.enrolment_service import METHOD
from cloister.ratls.exchange import (
    COURTESY_SECONDS,
    Call,
    broken_off,
    next_reply,
    not_met,
    refuse,
)
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.limits import USUAL_LIMITS, Limits
from cloister.ratls.node import Node

_SERVER = "the server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What a client has after a successful enrolment.

    Attributes:
        server_certificate: The server's pinned certificate, DER.
        admittance: The attested server, and what it admits this node to.
    """

    server_certificate: bytes
    admittance: Admittance


async def enrol(
    node: Node, address: Address, *, limits: Limits = USUAL_LIMITS
) -> Enrolled:
    """Enrols `node` with the server at `address`.

    Args:
        node: The client's node.
        address: The server's enrolment port.
        limits: How long the server may take.

    Raises:
        VerificationError: If this node refuses the server, or is refused by it.
        ProtocolError: If the server cannot be reached or breaks off.
    """
    enrolment = ClientEnrolment(node)
    certificate = await _reach(enrolment, address)
    return await _challenge_at(enrolment, address, certificate, limits=limits)


async def renew(
    node: Node, address: Address, *, limits: Limits = USUAL_LIMITS
) -> Enrolled:
    """Renews an admission that is still in force: the same handshake once more.

    Whoever is on the way to `address` can answer there with any certificate. He is not
    the server then, so he must not end a node that the server admitted.

    Args:
        node: The client's node.
        address: The server's enrolment port.
        limits: How long the server may take.

    Raises:
        VerificationError: If this node refuses the server, or is refused by it.
        ProtocolError: If the server cannot be reached or breaks off; also if whoever
            answers has no certificate that holds.
    """
    enrolment = ClientEnrolment(node)
    try:
        certificate = await _reach(enrolment, address)
    except VerificationError as error:
        raise not_met("the server", error) from error
    return await _challenge_at(enrolment, address, certificate, limits=limits)


async def _reach(enrolment: ClientEnrolment, address: Address) -> EvidenceCertificate:
    """Returns the certificate of the server at `address`, which is pinned now."""
    unverified_certificate = await fetch_unverified_certificate(address)
    try:
        # In a thread: collateral may have to be fetched.
        return await asyncio.to_thread(enrolment.pin, unverified_certificate)
    except CloisterError as error:
        await _tell_refusal(error, address, unverified_certificate)
        raise


async def _challenge_at(
    enrolment: ClientEnrolment,
    address: Address,
    certificate: EvidenceCertificate,
    *,
    limits: Limits,
) -> Enrolled:
    channel = open_channel(
        address, pinned_certificate=certificate.der, max_message_bytes=MAX_MESSAGE_BYTES
    )
    async with channel:
        call: Call = channel.stream_stream(METHOD)(timeout=limits.handshake_seconds)
        try:
            admittance = await _challenge(enrolment, call)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise broken_off(f"the server at {address}", error) from error
        except (RefusedByPeer, PeerInTrouble):
            raise
        except CloisterError as error:
            await refuse(call, error)
            raise
    return Enrolled(server_certificate=certificate.der, admittance=admittance)


async def _challenge(enrolment: ClientEnrolment, call: Call) -> Admittance:
    await call.write(encode_message(enrolment.hello()))
    challenge = await next_reply(call, decode_from_server, Challenge, peer=_SERVER)
    await call.write(encode_message(enrolment.answer(challenge)))
    proof = await next_reply(call, decode_from_server, ServerProof, peer=_SERVER)
    # In a thread: collateral may have to be fetched, and a quote takes a while.
    own = await asyncio.to_thread(enrolment.prove, proof)
    await call.write(encode_message(own))
    return enrolment.finish(
        await next_reply(call, decode_from_server, Admission, peer=_SERVER)
    )


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
            call: Call = channel.stream_stream(METHOD)(timeout=COURTESY_SECONDS)
            await refuse(call, error)
    except grpc.aio.UsageError:
        return  # courtesy only: whoever it is may as well not listen
