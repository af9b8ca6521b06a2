"""The custodian's port: one call is one node's session.

A node of the party gets its warrant, its keys and its marks here; one of another party
gets the party's share of its state key, where the plan says so, and nothing else. Who
is refused learns why once it has proved itself; before that it is a stranger, and hears
no more than a code and a line. The custodian's log has the rest, and its register what
it refused to those that had proved themselves.
"""

from __future__ import annotations

import asyncio
from typing import TypeAlias

import grpc
from structlog.typing import FilteringBoundLogger
from typing_extensions import override

from cloister.custody.custodian import Custodian, Proved
from cloister.custody.meeting import CustodianMeeting
from cloister.custody.messages import (
    Deposit,
    KeyRequest,
    KeysReleased,
    Possession,
    decode_from_node,
)
from cloister.custody.share_meeting import ShareMeeting
from cloister.errors import (
    CloisterError,
    PeerInTrouble,
    ProtocolError,
    RefusedByPeer,
)
from cloister.ratls.challenge import (
    Answer,
    ClientProof,
    EvidenceProof,
    Hello,
    IdentityProof,
    Message,
    Refusal,
    decode_message,
)
from cloister.ratls.epochs import key_digest
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
from cloister.ratls.refusals import (
    bare_refusal_from,
    is_trouble,
    refusal_from,
    refused_by_peer,
)
from cloister.ratls.unforeseen import unforeseen
from cloister.ratls.warrant import WarrantTerms

METHOD = "/cloister.Custody/Meet"

# A party has one node, and a few that replace each other; the rest is a flood.
CUSTODY_LIMITS = Limits(at_once=1024)

_Meeting: TypeAlias = CustodianMeeting | ShareMeeting


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
        meeting: _Meeting | None = None
        try:
            self._check_room()
            # What is sent counts as well: who does not read would stay for ever.
            async with asyncio.timeout(self._limits.handshake_seconds):
                async with asyncio.timeout(self._limits.stranger_seconds):
                    hello = await next_request(requests, decode_from_node, Hello)
                meeting = self._meeting_with(hello)
                await self._authenticate(meeting, hello, requests, context)
            await self._serve(meeting, requests, context)
        except TimeoutError:
            self._refusals(meeting).warning("session-timeout", address=address)
        except (RefusedByPeer, PeerInTrouble) as error:
            self._refusals(meeting).warning(
                "refused-by-peer", address=address, code=error.code, reason=str(error)
            )
        except CloisterError as error:
            await self._refuse(meeting, context, error)
        except Exception as error:  # noqa: BLE001 - the edge: gRPC would send its text
            await self._refuse(meeting, context, unforeseen(error))
        finally:
            self._sessions -= 1

    def _meeting_with(self, hello: Hello) -> _Meeting:
        """Returns the kind of session that a node wants; it decides about nothing."""
        kind = (
            CustodianMeeting if hello.party == self._custodian.party else ShareMeeting
        )
        return kind(self._custodian, tls_key=self._tls_key)

    async def _authenticate(
        self, meeting: _Meeting, hello: Hello, requests: Requests, context: Context
    ) -> None:
        # In threads from here on: the register waits for a disk.
        await reply(context, await asyncio.to_thread(meeting.challenge, hello))
        if isinstance(meeting, CustodianMeeting):
            async with asyncio.timeout(self._limits.stranger_seconds):
                possession = await next_request(requests, decode_from_node, Possession)
            await reply(context, meeting.prove(possession))
            proof = await self._proof(requests)
            warranted = await asyncio.to_thread(meeting.warrant, proof)
            self._log.info(
                "warrant-signed",
                **_node(warranted.warrant.terms, proof),
                round=warranted.mark.round if warranted.mark else 0,
            )
            await reply(context, warranted)
        else:
            async with asyncio.timeout(self._limits.stranger_seconds):
                answer = await next_request(requests, decode_from_node, Answer)
            await reply(context, meeting.prove(answer))
            proof = await self._proof(requests)
            met = await asyncio.to_thread(meeting.meet, proof)
            terms = answer.warrant.terms
            self._log.info("node-met", node_party=terms.party, **_node(terms, proof))
            await reply(context, met)

    async def _proof(self, requests: Requests) -> ClientProof:
        return await next_request(
            requests, decode_from_node, EvidenceProof, IdentityProof
        )

    async def _serve(
        self, meeting: _Meeting, requests: Requests, context: Context
    ) -> None:
        # A node of the party stays as long as it runs; another's has come for a share.
        stays = isinstance(meeting, CustodianMeeting)
        async with asyncio.timeout(None if stays else self._limits.handshake_seconds):
            async for raw in requests:
                message: Message = decode_message(raw, decode_from_node)
                if isinstance(message, Refusal):
                    raise refused_by_peer("the node", message)
                async with asyncio.timeout(self._limits.handshake_seconds):
                    await self._serve_one(meeting, message, context)

    async def _serve_one(
        self, meeting: _Meeting, message: Message, context: Context
    ) -> None:
        if isinstance(message, KeyRequest):
            await self._release(meeting, message, context)
        elif isinstance(message, Deposit) and isinstance(meeting, CustodianMeeting):
            await reply(context, await asyncio.to_thread(meeting.deposit, message))
        else:
            raise ProtocolError(
                "a message is out of order",
                code="message-order",
                expected=f"{Deposit.__name__} or {KeyRequest.__name__}"
                if isinstance(meeting, CustodianMeeting)
                else KeyRequest.__name__,
                got=type(message).__name__,
            )

    async def _release(
        self, meeting: _Meeting, request: KeyRequest, context: Context
    ) -> None:
        released = await asyncio.to_thread(meeting.release, request)
        to = _proved(meeting).transcript
        self._log.info(
            "keys-released",
            run=to.run_id,
            role=to.client_role,
            node_party=to.client_party,
            epoch=released.epoch,
            key=key_digest(to.client_key).hex()[:16],
            kinds=list(released.key_ids),
            key_ids=list(released.key_ids.values()),
        )
        await reply(context, KeysReleased(sealed=released.sealed))

    async def _refuse(
        self, meeting: _Meeting | None, context: Context, error: CloisterError
    ) -> None:
        """Tells a node why it is refused, and records it where it proved itself."""
        self._refusals(meeting).warning(
            "node-refused",
            address=context.peer(),
            code=error.code,
            reason=str(error),
        )
        proved = meeting.proved if meeting is not None else None
        if proved is None:
            await reply_refusal(context, bare_refusal_from(error))
            return
        if not is_trouble(error):
            try:
                await asyncio.to_thread(self._custodian.note_refusal, proved, error)
            except CloisterError as failed:
                # The node is refused all the same, and the log has it.
                self._log.warning(
                    "refusal-not-recorded", code=failed.code, reason=str(failed)
                )
        await reply_refusal(context, refusal_from(error))

    def _refusals(self, meeting: _Meeting | None) -> RefusalLog:
        known = meeting is not None and meeting.proved is not None
        return self._of_nodes if known else self._of_strangers

    def _check_room(self) -> None:
        if self._sessions > self._limits.at_once:
            raise ProtocolError(
                "the custodian has too many sessions",
                code="custodian-busy",
                expected=f"at most {self._limits.at_once} at once",
                remedy="Try again in a while.",
            )


def _proved(meeting: _Meeting) -> Proved:
    if meeting.proved is None:
        raise RuntimeError("prove first")
    return meeting.proved


def _node(terms: WarrantTerms, proof: ClientProof) -> dict[str, str | int]:
    """Returns what a log says of a node that proved itself."""
    return {
        "run": terms.run_id,
        "role": terms.role,
        "epoch": terms.epoch,
        "key": key_digest(terms.tls_key).hex()[:16],
        "admit": "attested" if isinstance(proof, EvidenceProof) else "identity",
    }
