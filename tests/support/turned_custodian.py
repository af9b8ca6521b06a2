"""A custodian that was taken over: honest, until keys are asked for.

It has the party's key and keeps the protocol, so a node has no reason to leave. What it
gives then is what somebody wants it to give.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger
from tests.support.custody_meeting import certificate_of
from tests.support.posing import posing_port
from tests.support.recorded_log import RecordedLog
from typing_extensions import override

from cloister.custody.custodian import Custodian
from cloister.custody.meeting import CustodianMeeting
from cloister.custody.messages import KeyRequest, KeysReleased
from cloister.custody.service import CustodyService
from cloister.custody.share_meeting import ShareMeeting
from cloister.plan.site import Address
from cloister.ratls.exchange import Context, reply
from cloister.ratls.identity import Spki, new_identity
from cloister.ratls.transcript import Transcript

Answer = Callable[[Transcript, int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """What a test sees of it.

    Attributes:
        address: Where it listens.
        log: What it says.
    """

    address: Address
    log: RecordedLog

    def heard(self) -> list[object]:
        """Returns the codes with which nodes left it."""
        return [event["code"] for event in self.log.named("refused-by-peer")]


class TurnedService(CustodyService):
    """Answers each request for keys with what `answer` makes of the session."""

    def __init__(
        self,
        custodian: Custodian,
        *,
        tls_key: Spki,
        log: FilteringBoundLogger,
        answer: Answer,
    ) -> None:
        super().__init__(custodian, tls_key=tls_key, log=log)
        self._answer = answer

    @override
    async def _release(
        self,
        meeting: CustodianMeeting | ShareMeeting,
        request: KeyRequest,
        context: Context,
    ) -> None:
        assert meeting.proved is not None
        assert meeting._epoch is not None
        sealed = self._answer(meeting.proved.transcript, meeting._epoch)
        await reply(context, KeysReleased(sealed=sealed))


@asynccontextmanager
async def turned_port(custodian: Custodian, answer: Answer) -> AsyncIterator[Turned]:
    """Opens the port of a custodian that was taken over.

    Args:
        custodian: Whose key and register it has.
        answer: What it seals, given a session's transcript and the node's epoch.
    """
    identity, log = new_identity(), RecordedLog()
    service = TurnedService(
        custodian, tls_key=identity.tls_spki, log=log.logger(), answer=answer
    )
    certificate = certificate_of(custodian, identity)
    async with posing_port(identity, certificate, service) as address:
        yield Turned(address=address, log=log)
    service.close()
