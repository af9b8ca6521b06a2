"""A node's line to its custodian: warrants and their renewal, and deposits of marks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
from structlog.typing import FilteringBoundLogger

from cloister.custody.certificate import CustodianCertificate
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    Deposit,
    Deposited,
    Warranted,
    decode_from_custodian,
)
from cloister.custody.node_meeting import NodeMeeting
from cloister.custody.service import METHOD
from cloister.errors import (
    CloisterError,
    PeerInTrouble,
    ProtocolError,
    RefusedByPeer,
    VerificationError,
)
from cloister.plan.site import Address
from cloister.ratls.challenge import MAX_MESSAGE_BYTES, encode_message
from cloister.ratls.channels import open_channel
from cloister.ratls.exchange import Call, broken_off, next_reply, not_met, refuse
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.limits import USUAL_LIMITS, Limits
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 2.0
# What a custodian may say today and not tomorrow: people sign plans by hand, and a
# busy, absent or stopping custodian comes back.
_WAITED_FOR = frozenset(
    {
        "plan-not-consented",
        "custodian-busy",
        "custodian-unreachable",
        "enrolment-broken",
    }
)


@dataclass(frozen=True, slots=True)
class _Session:
    call: Call
    resources: AsyncExitStack


class CustodianLine:
    """Satisfies `federation.custodian.Custodian`.

    Args:
        node: The node; its warrant is renewed here.
        address: Where its party's custodian listens.
        log: One line for each warrant.
        limits: How long the custodian may take for an answer.
    """

    def __init__(
        self,
        node: Node,
        address: Address,
        *,
        log: FilteringBoundLogger,
        limits: Limits = USUAL_LIMITS,
    ) -> None:
        self._node = node
        self._address = address
        self._log = log
        self._limits = limits
        self._session: _Session | None = None
        self._turn = asyncio.Lock()
        self._mark: Mark | None = None

    @property
    def mark(self) -> Mark | None:
        """How far the party knows the run to be; None before the first deposit."""
        return self._mark

    async def first_warrant(self, *, patience_seconds: float) -> None:
        """Gets the node its warrant; waits for a custodian, and for a consent.

        Raises:
            VerificationError: If either refuses the other.
            ProtocolError: If no custodian answers for that long, or it cannot go on.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience_seconds
        pause = _FIRST_RETRY_SECONDS
        told = ""
        while True:
            try:
                async with self._turn:
                    await self._meet_first()
            except CloisterError as error:
                if not _passes(error) or loop.time() >= give_up:
                    raise
                if error.code != told:
                    self._log.warning(
                        "waiting-for-custodian",
                        custodian=str(self._address),
                        code=error.code,
                        reason=str(error),
                    )
                    told = error.code
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_RETRY_SECONDS)

    async def renew(self) -> None:
        """Meets the custodian anew; the node holds a fresh warrant afterwards.

        Raises:
            VerificationError: If either refuses the other.
            ProtocolError: If it cannot be reached, breaks off, cannot go on, or
                somebody else answers. The warrant that the node holds is as it was.
        """
        async with self._turn:
            await self._meet_again()

    async def deposit(self, mark: Mark) -> None:
        """Has the custodian remember how far the run has come.

        Raises:
            VerificationError: If it contradicts what the custodian knows, or another
                node has taken this one's place.
            ProtocolError: If it cannot be reached, breaks off, cannot go on, or
                somebody else answers.
        """
        async with self._turn:
            if self._session is None:
                await self._meet_again()
            try:
                await self._deposit(mark)
            except ProtocolError as error:
                if error.code != "enrolment-broken":
                    raise
                # It was started anew, or the network was: once more on a fresh line.
                await self._meet_again()
                await self._deposit(mark)
            self._mark = mark

    async def close(self) -> None:
        """Ends the session."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.resources.aclose()

    async def _meet_first(self) -> None:
        """A session of a node without a warrant: whoever else answers is an error."""
        meeting, unverified = await self._begin()
        await self._open(meeting, meeting.pin(unverified))

    async def _meet_again(self) -> None:
        """A session of a node that is at work: whoever else answers ends nobody."""
        meeting, unverified = await self._begin()
        try:
            certificate = meeting.pin(unverified)
        except VerificationError as error:
            raise not_met(self._who, error) from error
        await self._open(meeting, certificate)

    async def _begin(self) -> tuple[NodeMeeting, bytes]:
        await self.close()
        return NodeMeeting(self._node), await self._fetch_unverified_certificate()

    async def _open(
        self, meeting: NodeMeeting, certificate: CustodianCertificate
    ) -> None:
        channel = open_channel(
            self._address,
            pinned_certificate=certificate.der,
            max_message_bytes=MAX_MESSAGE_BYTES,
        )
        # Also when cancelled: a line is open whole or not at all.
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(channel)
            call: Call = channel.stream_stream(METHOD)()
            async with self._answering():
                try:
                    await self._challenge(meeting, call)
                except (RefusedByPeer, PeerInTrouble):
                    raise
                except CloisterError as error:
                    await refuse(call, error)
                    raise
            self._session = _Session(call, stack.pop_all())

    async def _fetch_unverified_certificate(self) -> bytes:
        try:
            return await fetch_unverified_certificate(self._address)
        except ProtocolError as error:
            raise ProtocolError(
                f"no custodian answers at {self._address}",
                code="custodian-unreachable",
                expected="this party's custodian",
                got=error.got,
                remedy="Start it, or correct [custodian] in site.toml.",
            ) from error

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """Turns a custodian that breaks off or falls silent into an error of ours."""
        try:
            async with asyncio.timeout(self._limits.handshake_seconds):
                yield
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise broken_off(self._who, error) from error
        except TimeoutError as error:
            raise ProtocolError(
                f"{self._who} does not answer",
                code="enrolment-broken",
                expected=f"an answer within {self._limits.handshake_seconds:g} s",
                got="nothing",
            ) from error

    async def _challenge(self, meeting: NodeMeeting, call: Call) -> None:
        await call.write(encode_message(meeting.hello()))
        challenge = await next_reply(
            call, decode_from_custodian, CustodianChallenge, peer=self._who
        )
        await call.write(encode_message(meeting.possess(challenge)))
        proof = await next_reply(
            call, decode_from_custodian, CustodianProof, peer=self._who
        )
        # In a thread: a quote takes a while on real machines.
        await call.write(encode_message(await asyncio.to_thread(meeting.prove, proof)))
        warranted = await next_reply(
            call, decode_from_custodian, Warranted, peer=self._who
        )
        self._mark = meeting.accept(warranted)
        terms = warranted.warrant.terms
        self._log.info(
            "warranted",
            epoch=terms.epoch,
            expires_at=terms.expires_at,
            round=self._mark.round if self._mark else 0,
        )

    async def _deposit(self, mark: Mark) -> None:
        if self._session is None:
            raise RuntimeError("meet first")
        session, self._session = self._session, None
        # A session in which anything went wrong is over: an answer that comes late
        # would be taken for the next one's.
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(session.resources)
            async with self._answering():
                await session.call.write(encode_message(Deposit(mark=mark)))
                deposited = await next_reply(
                    session.call, decode_from_custodian, Deposited, peer=self._who
                )
            if deposited.mark != mark:
                raise ProtocolError(
                    f"{self._who} remembers something else than it was told",
                    code="deposit-differs",
                    expected=f"round {mark.round}",
                    got=f"round {deposited.mark.round}",
                )
            stack.pop_all()
        self._session = session

    @property
    def _who(self) -> str:
        return f"the custodian at {self._address}"


def _passes(error: CloisterError) -> bool:
    return error.code in _WAITED_FOR or isinstance(error, PeerInTrouble)
