"""The server's end of the enrolment port: one call is one enrolment.

Every failure ends with a `Refusal`, so the client learns why, and is logged. Until a
client has shown its party's warrant it is a stranger: it has little time, it hears no
more than a code and a line, and no quote is made for it. What comes of all others is
recorded in the audit, before they hear of it.
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
from cloister.ratls.audit import DoorAudit
from cloister.ratls.challenge import (
    Admission,
    Answer,
    EvidenceProof,
    Hello,
    IdentityProof,
    Refusal,
    decode_from_client,
)
from cloister.ratls.enrolment_pace import EnrolmentPace
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
from cloister.ratls.refusals import bare_refusal_from, is_trouble, refusal_from
from cloister.ratls.server_enrolment import ServerEnrolment
from cloister.ratls.unforeseen import unforeseen

METHOD = "/cloister.Enrolment/Enrol"


class EnrolmentService(grpc.GenericRpcHandler):
    """The server's end of the enrolment port.

    Args:
        node: The server's own node.
        authority: Issues the admission certificates.
        table: Receives the admitted peers.
        audit: Records who is admitted, and who is refused in spite of a good warrant.
        log: One line for each decision; refusals are counted where they are many.
        on_admitted: Told of every admitted peer.
        limits: What clients may take up.
    """

    def __init__(  # noqa: PLR0913 - all it takes to admit
        self,
        node: Node,
        *,
        authority: AdmissionAuthority,
        table: AdmissionTable,
        audit: DoorAudit,
        log: FilteringBoundLogger,
        on_admitted: Callable[[Peer], None],
        limits: Limits = USUAL_LIMITS,
    ) -> None:
        self._node = node
        self._authority = authority
        self._table = table
        self._audit = audit
        self._log = log
        # Two of them, or a flood of strangers would hide a party's refused node.
        self._of_strangers = RefusalLog(log)
        self._of_parties = RefusalLog(log)
        self._on_admitted = on_admitted
        self._limits = limits
        self._pace = EnrolmentPace(limits.enrolments_a_minute)
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
        enrolment = ServerEnrolment(
            self._node,
            authority=self._authority,
            table=self._table,
            audit=self._audit,
            pace=self._pace,
        )
        self._under_way += 1
        try:
            # What is sent counts as well: who does not read would stay for ever.
            async with asyncio.timeout(self._limits.handshake_seconds):
                await self._steps(enrolment, requests, context)
        except TimeoutError:
            self._of_strangers.warning("enrolment-timeout", address=address)
        except (RefusedByPeer, PeerInTrouble) as error:
            self._of_strangers.warning(
                "refused-by-peer", address=address, code=error.code, reason=str(error)
            )
        except CloisterError as error:
            refusal = self._refused(enrolment, error, address=address)
            await reply_refusal(context, refusal)
        except Exception as error:  # noqa: BLE001 - the edge: gRPC would send its text
            refusal = self._refused(enrolment, unforeseen(error), address=address)
            await reply_refusal(context, refusal)
        finally:
            self._under_way -= 1

    async def _steps(
        self, enrolment: ServerEnrolment, requests: Requests, context: Context
    ) -> None:
        self._check_room()
        async with asyncio.timeout(self._limits.stranger_seconds):
            hello = await next_request(requests, decode_from_client, Hello)
        await reply(context, enrolment.challenge(hello))
        async with asyncio.timeout(self._limits.stranger_seconds):
            answer = await next_request(requests, decode_from_client, Answer)
        # In a thread: a quote takes a while on real machines.
        await reply(context, await asyncio.to_thread(enrolment.prove, answer))
        peer, admission = await self._admit(enrolment, requests)
        self._log.info("peer-admitted", **describe_peer(peer))
        self._on_admitted(peer)
        await reply(context, admission)

    def _refused(
        self, enrolment: ServerEnrolment, error: CloisterError, *, address: str
    ) -> Refusal:
        """Logs and records a refusal; returns what the client hears of it."""
        known = enrolment.shown()
        if known is None:
            # Without its words: the other side has not shown who it is.
            self._of_strangers.warning(
                "peer-refused", address=address, code=error.code, reason=str(error)
            )
            return bare_refusal_from(error)
        client = known.testimony.said
        self._of_parties.warning(
            "peer-refused",
            address=address,
            peer=client.client_party,
            code=error.code,
            reason=str(error),
        )
        # What stops this side says nothing of the other.
        if not is_trouble(error):
            try:
                self._audit.node_refused(
                    known.testimony,
                    known.collateral,
                    role=client.client_role,
                    party=client.client_party,
                    error=error,
                )
            except CloisterError as trouble:
                self._log.error("not-recorded", code=trouble.code, reason=str(trouble))
                return bare_refusal_from(trouble)
        # Its party's warrant was good: it may hear why the rest is not, unless its
        # party has a newer node. That is then the party's, and no matter of the older.
        return refusal_from(error) if enrolment.proved else bare_refusal_from(error)

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
