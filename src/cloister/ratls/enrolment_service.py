"""The server's end of the enrolment port: one call is one enrolment.

Every failure ends with a `Refusal`, so the client learns why, and is logged. Until a
client has shown its party's warrant it is a stranger: it has little time, it hears no
more than a code and a line, and no quote is made for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from structlog.typing import FilteringBoundLogger
from typing_extensions import override

from cloister.attestation.claims import SgxMeasurements
from cloister.errors import (
    CloisterError,
    PeerInTrouble,
    ProtocolError,
    RefusedByPeer,
)
from cloister.ratls.admission import AdmissionAuthority
from cloister.ratls.admission_table import AdmissionTable, Peer
from cloister.ratls.challenge import (
    Admission,
    Answer,
    EvidenceProof,
    Hello,
    IdentityProof,
    decode_from_client,
)
from cloister.ratls.exchange import (
    Context,
    Requests,
    next_request,
    reply,
    reply_refusal,
)
from cloister.ratls.limits import USUAL_LIMITS, Limits
from cloister.ratls.node import Node
from cloister.ratls.proofs import Identified
from cloister.ratls.refusal_log import RefusalLog
from cloister.ratls.refusals import bare_refusal_from, refusal_from
from cloister.ratls.server_enrolment import ServerEnrolment

METHOD = "/cloister.Enrolment/Enrol"


class EnrolmentService(grpc.GenericRpcHandler):
    """The server's end of the enrolment port.

    Args:
        node: The server's own node.
        authority: Issues the admission certificates.
        table: Receives the admitted peers.
        log: One line for each decision; refusals are counted where they are many.
        on_admitted: Told of every admitted peer.
        limits: What clients may take up.
    """

    def __init__(
        self,
        node: Node,
        *,
        authority: AdmissionAuthority,
        table: AdmissionTable,
        log: FilteringBoundLogger,
        on_admitted: Callable[[Peer], None],
        limits: Limits = USUAL_LIMITS,
    ) -> None:
        self._node = node
        self._authority = authority
        self._table = table
        self._log = log
        # Two of them, or a flood of strangers would hide a party's refused node.
        self._of_strangers = RefusalLog(log)
        self._of_parties = RefusalLog(log)
        self._on_admitted = on_admitted
        self._limits = limits
        self._under_way = 0

    @override
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if handler_call_details.method != METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(self._enrol)

    def close(self) -> None:
        """Tells how many refusals were not told one by one."""
        self._of_strangers.close()
        self._of_parties.close()

    async def _enrol(self, requests: Requests, context: Context) -> None:
        address = context.peer()
        self._under_way += 1
        try:
            # What is sent counts as well: who does not read would stay for ever.
            async with asyncio.timeout(self._limits.handshake_seconds):
                await self._steps(requests, context)
        except TimeoutError:
            self._of_strangers.warning("enrolment-timeout", address=address)
        except (RefusedByPeer, PeerInTrouble) as error:
            self._of_strangers.warning(
                "refused-by-peer", address=address, code=error.code, reason=str(error)
            )
        except CloisterError as error:
            # Without its words: the other side has not shown who it is.
            self._of_strangers.warning(
                "peer-refused", address=address, code=error.code, reason=str(error)
            )
            await reply_refusal(context, bare_refusal_from(error))
        finally:
            self._under_way -= 1

    async def _steps(self, requests: Requests, context: Context) -> None:
        enrolment = ServerEnrolment(
            self._node, authority=self._authority, table=self._table
        )
        self._check_room()
        async with asyncio.timeout(self._limits.stranger_seconds):
            hello = await next_request(requests, decode_from_client, Hello)
        await reply(context, enrolment.challenge(hello))
        async with asyncio.timeout(self._limits.stranger_seconds):
            answer = await next_request(requests, decode_from_client, Answer)
        # In a thread: a quote takes a while on real machines.
        await reply(context, await asyncio.to_thread(enrolment.prove, answer))
        try:
            peer, admission = await self._admit(enrolment, requests)
        except (RefusedByPeer, PeerInTrouble):
            raise
        except CloisterError as error:
            # Its party's warrant was good: it may hear why its evidence is not.
            self._of_parties.warning(
                "peer-refused",
                address=context.peer(),
                peer=hello.party,
                code=error.code,
                reason=str(error),
            )
            await reply_refusal(context, refusal_from(error))
            return
        self._log.info("peer-admitted", **describe_peer(peer))
        self._on_admitted(peer)
        await reply(context, admission)

    async def _admit(
        self, enrolment: ServerEnrolment, requests: Requests
    ) -> tuple[Peer, Admission]:
        proof = await next_request(
            requests, decode_from_client, EvidenceProof, IdentityProof
        )
        # In a thread: collateral may have to be fetched.
        await asyncio.to_thread(enrolment.prepare, proof)
        return enrolment.admit(proof)

    def _check_room(self) -> None:
        if self._under_way > self._limits.at_once:
            raise ProtocolError(
                "the server has too many enrolments under way",
                code="server-busy",
                expected=f"at most {self._limits.at_once} at once",
                remedy="Try again in a while.",
            )


def describe_peer(peer: Peer) -> dict[str, str | int | bool | dict[str, str]]:
    """Returns what a log says of a peer that proved itself: public values only."""
    named: dict[str, str | int | bool | dict[str, str]] = {
        "peer": peer.party,
        "peer_role": peer.role,
        "epoch": peer.epoch,
        "key": peer.node.key.hex()[:16],
    }
    if isinstance(peer.standing, Identified):
        return {**named, "admit": "identity"}
    claims = peer.standing.claims
    measured = claims.measurements
    return {
        **named,
        "admit": "attested",
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
