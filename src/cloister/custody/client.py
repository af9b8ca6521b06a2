"""A node's line to its custodian: warrants, their renewal, its keys, and marks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from cloister.custody.calling import Callee, patiently, refusing
from cloister.custody.certificate import CustodianCertificate
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    Deposit,
    Deposited,
    KeysReleased,
    Warranted,
    decode_from_custodian,
)
from cloister.custody.node_meeting import NodeMeeting
from cloister.errors import ProtocolError, RefusedByPeer, VerificationError
from cloister.plan.plan import PlanHash
from cloister.plan.site import Address
from cloister.ratls.challenge import Message, encode_message
from cloister.ratls.exchange import Call, next_reply, not_met
from cloister.ratls.limits import USUAL_LIMITS, Limits
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.storage.keys import KeyKind, Secret

# What a fresh session mends: one that was cut, and one that was opened long ago.
_MEND = frozenset({"enrolment-broken", "proof-old"})
_Asked = TypeVar("_Asked")
_Result = TypeVar("_Result")
_Wanted = TypeVar("_Wanted", bound=Message)


@dataclass(frozen=True, slots=True)
class _Session:
    call: Call
    meeting: NodeMeeting
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
        self._custodian = Callee(
            address=address,
            whose="this party's custodian",
            section="custodian",
            limits=limits,
        )
        self._log = log
        self._session: _Session | None = None
        self._turn = asyncio.Lock()
        self._mark: Mark | None = None
        self._mark_plan: PlanHash | None = None

    @property
    def mark(self) -> Mark | None:
        """How far the party knows the run to be; None before the first deposit."""
        return self._mark

    @property
    def mark_plan(self) -> PlanHash | None:
        """The plan under which that mark was deposited; None without a mark.

        It is the node's own, or one before it. The mark's audit head lies in the log of
        that plan.
        """
        return self._mark_plan

    async def first_warrant(self, *, patience_seconds: float) -> None:
        """Gets the node its warrant; waits for a custodian, and for a consent.

        Raises:
            VerificationError: If either refuses the other.
            ProtocolError: If no custodian answers for that long, or it cannot go on.
        """

        async def meet() -> None:
            async with self._turn:
                await self._meet_first()

        await self._patiently(meet, patience_seconds=patience_seconds)

    async def renew(self) -> None:
        """Meets the custodian anew; the node holds a fresh warrant afterwards.

        Raises:
            VerificationError: If either refuses the other.
            ProtocolError: If it cannot be reached, breaks off, cannot go on, or
                somebody else answers. The warrant that the node holds is as it was.
        """
        async with self._turn:
            await self._meet_again()

    async def keys(
        self, kinds: Sequence[KeyKind], *, patience_seconds: float
    ) -> dict[KeyKind, Secret]:
        """Returns the node's keys of these kinds, each the one that the plan names.

        Raises:
            VerificationError: If the plan gives it none of a kind, the custodian
                refuses, or gives another key.
            ProtocolError: If no custodian answers for that long, it cannot go on, or
                somebody else answers.
        """

        async def ask() -> dict[KeyKind, Secret]:
            async with self._turn:
                return await self._once_more(self._keys, kinds)

        return await self._patiently(ask, patience_seconds=patience_seconds)

    async def deposit(self, mark: Mark) -> None:
        """Has the custodian remember how far the run has come.

        Raises:
            VerificationError: If it contradicts what the custodian knows, or another
                node has taken this one's place.
            ProtocolError: If it cannot be reached, breaks off, cannot go on, or
                somebody else answers.
        """
        async with self._turn:
            await self._once_more(self._deposit, mark)
            if mark != self._mark:
                self._mark, self._mark_plan = mark, self._node.plan_hash

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
            raise not_met(str(self._custodian), error) from error
        await self._open(meeting, certificate)

    async def _begin(self) -> tuple[NodeMeeting, bytes]:
        await self.close()
        certificate = await self._custodian.fetch_unverified_certificate()
        return NodeMeeting(self._node), certificate

    async def _open(
        self, meeting: NodeMeeting, certificate: CustodianCertificate
    ) -> None:
        # Also when cancelled: a line is open whole or not at all.
        async with AsyncExitStack() as stack:
            call = await stack.enter_async_context(self._custodian.call(certificate))
            async with self._custodian.answering(), refusing(call):
                await self._challenge(meeting, call)
            self._session = _Session(call, meeting, stack.pop_all())

    async def _challenge(self, meeting: NodeMeeting, call: Call) -> None:
        await call.write(encode_message(meeting.hello()))
        challenge = await self._reply(call, CustodianChallenge)
        await call.write(encode_message(meeting.possess(challenge)))
        proof = await self._reply(call, CustodianProof)
        # In a thread: a quote takes a while on real machines.
        await call.write(encode_message(await asyncio.to_thread(meeting.prove, proof)))
        warranted = await self._reply(call, Warranted)
        self._mark = meeting.accept(warranted)
        named = warranted.mark_plan
        self._mark_plan = None if named is None else PlanHash(named)
        terms = warranted.warrant.terms
        self._log.info(
            "warranted",
            epoch=terms.epoch,
            expires_at=terms.expires_at,
            round=self._mark.round if self._mark else 0,
        )

    async def _once_more(
        self, act: Callable[[_Asked], Awaitable[_Result]], asked: _Asked
    ) -> _Result:
        """Does something in the session; in a fresh one if there is none, or it broke.

        The custodian was started anew, or the network was; or it wants keys asked for
        by a node that proves itself now.
        """
        if self._session is None:
            await self._meet_again()
        try:
            return await act(asked)
        except (ProtocolError, RefusedByPeer) as error:
            if error.code not in _MEND:
                raise
            await self._meet_again()
            return await act(asked)

    async def _keys(self, kinds: Sequence[KeyKind]) -> dict[KeyKind, Secret]:
        async with self._lent_session() as session:
            request = encode_message(session.meeting.request(kinds))
            await session.call.write(request)
            released = await self._reply(session.call, KeysReleased)
            async with refusing(session.call):
                return session.meeting.open(released, kinds=kinds)

    async def _deposit(self, mark: Mark) -> None:
        async with self._lent_session() as session:
            await session.call.write(encode_message(Deposit(mark=mark)))
            deposited = await self._reply(session.call, Deposited)
            if deposited.mark != mark:
                raise ProtocolError(
                    f"{self._custodian} remembers something else than it was told",
                    code="deposit-differs",
                    expected=f"round {mark.round}",
                    got=f"round {deposited.mark.round}",
                )

    @asynccontextmanager
    async def _lent_session(self) -> AsyncIterator[_Session]:
        """Lends the session for one request.

        A session in which anything went wrong is over: an answer that comes late would
        be taken for the next one's.
        """
        if self._session is None:
            raise RuntimeError("meet first")
        session, self._session = self._session, None
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(session.resources)
            async with self._custodian.answering():
                yield session
            stack.pop_all()
        self._session = session

    async def _reply(self, call: Call, wanted: type[_Wanted]) -> _Wanted:
        return await next_reply(
            call, decode_from_custodian, wanted, peer=str(self._custodian)
        )

    async def _patiently(
        self, attempt: Callable[[], Awaitable[_Result]], *, patience_seconds: float
    ) -> _Result:
        return await patiently(
            attempt,
            custodian=self._custodian,
            patience_seconds=patience_seconds,
            log=self._log,
        )
