"""The custodian's port: one call is one node's session.

A node that is refused learns why once it has proved itself; before that it is a
stranger, and hears no more than a code and a line. The custodian's log has the rest.
"""

from __future__ import annotations

import asyncio

import grpc
from structlog.typing import FilteringBoundLogger
from typing_extensions import override

from cloister.custody.custodian import Custodian
from cloister.custody.meeting import CustodianMeeting
from cloister.custody.messages import Deposit, Possession, decode_from_node
from cloister.errors import (
    CloisterError,
    PeerInTrouble,
    ProtocolError,
    RefusedByPeer,
)
from cloister.ratls.challenge import (
    EvidenceProof,
    Hello,
    IdentityProof,
    Message,
    Refusal,
    decode_message,
)
from cloister.ratls.exchange import (
    Context,
    Requests,
    next_request,
    reply,
    reply_refusal,
)
from cloister.ratls.identity import Spki
from cloister.ratls.limits import Limits
from cloister.ratls.refusal_log import RefusalLog
from cloister.ratls.refusals import bare_refusal_from, refusal_from, refused_by_peer

METHOD = "/cloister.Custody/Meet"

# A party has one node, and a few that replace each other; the rest is a flood.
CUSTODY_LIMITS = Limits(at_once=1024)


class CustodyService(grpc.GenericRpcHandler):
    """The custodian's end of its port.

    Args:
        custodian: Decides.
        tls_key: Its TLS key, as its certificate shows it.
        log: One line for each decision; refusals are counted where they are many.
        limits: What nodes may take up.
    """

    def __init__(
        self,
        custodian: Custodian,
        *,
        tls_key: Spki,
        log: FilteringBoundLogger,
        limits: Limits = CUSTODY_LIMITS,
    ) -> None:
        self._custodian = custodian
        self._tls_key = tls_key
        self._log = log
        # Two of them, or a flood of strangers would hide what the own node is refused.
        self._of_strangers = RefusalLog(log)
        self._of_nodes = RefusalLog(log)
        self._limits = limits
        self._sessions = 0

    @override
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if handler_call_details.method != METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(self._meet)

    def close(self) -> None:
        """Tells how many refusals were not told one by one."""
        self._of_strangers.close()
        self._of_nodes.close()

    async def _meet(self, requests: Requests, context: Context) -> None:
        address = context.peer()
        self._sessions += 1
        meeting = CustodianMeeting(self._custodian, tls_key=self._tls_key)
        try:
            self._check_room()
            # What is sent counts as well: who does not read would stay for ever.
            async with asyncio.timeout(self._limits.handshake_seconds):
                await self._authenticate(meeting, requests, context)
            await self._serve(meeting, requests, context)
        except TimeoutError:
            self._refusals(meeting).warning("session-timeout", address=address)
        except (RefusedByPeer, PeerInTrouble) as error:
            self._refusals(meeting).warning(
                "refused-by-peer", address=address, code=error.code, reason=str(error)
            )
        except CloisterError as error:
            self._refusals(meeting).warning(
                "node-refused", address=address, code=error.code, reason=str(error)
            )
            in_words = refusal_from if meeting.known else bare_refusal_from
            await reply_refusal(context, in_words(error))
        finally:
            self._sessions -= 1

    async def _authenticate(
        self, meeting: CustodianMeeting, requests: Requests, context: Context
    ) -> None:
        async with asyncio.timeout(self._limits.stranger_seconds):
            hello = await next_request(requests, decode_from_node, Hello)
        # In threads from here on: the register waits for a disk.
        await reply(context, await asyncio.to_thread(meeting.challenge, hello))
        async with asyncio.timeout(self._limits.stranger_seconds):
            possession = await next_request(requests, decode_from_node, Possession)
        await reply(context, meeting.prove(possession))
        proof = await next_request(
            requests, decode_from_node, EvidenceProof, IdentityProof
        )
        warranted = await asyncio.to_thread(meeting.warrant, proof)
        terms = warranted.warrant.terms
        self._log.info(
            "warrant-signed",
            run=terms.run_id,
            role=terms.role,
            epoch=terms.epoch,
            key=meeting.node_key.hex()[:16],
            admit="attested" if isinstance(proof, EvidenceProof) else "identity",
            round=warranted.mark.round if warranted.mark else 0,
        )
        await reply(context, warranted)

    async def _serve(
        self, meeting: CustodianMeeting, requests: Requests, context: Context
    ) -> None:
        async for raw in requests:
            message: Message = decode_message(raw, decode_from_node)
            if isinstance(message, Refusal):
                raise refused_by_peer("the node", message)
            if not isinstance(message, Deposit):
                raise ProtocolError(
                    "a message is out of order",
                    code="message-order",
                    expected=Deposit.__name__,
                    got=type(message).__name__,
                )
            async with asyncio.timeout(self._limits.handshake_seconds):
                deposited = await asyncio.to_thread(meeting.deposit, message)
                await reply(context, deposited)

    def _refusals(self, meeting: CustodianMeeting) -> RefusalLog:
        return self._of_nodes if meeting.known else self._of_strangers

    def _check_room(self) -> None:
        if self._sessions > self._limits.at_once:
            raise ProtocolError(
                "the custodian has too many sessions",
                code="custodian-busy",
                expected=f"at most {self._limits.at_once} at once",
                remedy="Try again in a while.",
            )
