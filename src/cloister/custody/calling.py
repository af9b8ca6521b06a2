"""A node's call to a custodian, whoever's: how it is made, broken off, and awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
from structlog.typing import FilteringBoundLogger
from typing_extensions import override

from cloister.custody.certificate import CustodianCertificate
from cloister.custody.service import METHOD
from cloister.errors import (
    CloisterError,
    PeerInTrouble,
    ProtocolError,
    RefusedByPeer,
)
from cloister.plan.site import Address
from cloister.ratls.challenge import MAX_MESSAGE_BYTES
from cloister.ratls.channels import open_channel
from cloister.ratls.exchange import Call, broken_off, refuse
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.limits import Limits

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
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Callee:
    """A custodian that is called.

    Attributes:
        address: Where it listens.
        whose: For people: whose it is, such as "this party's custodian".
        section: The section of the site file with its address.
        limits: How long it may take for an answer.
        share_of: The party, if it is another's, who holds a share.
    """

    address: Address
    whose: str
    section: str
    limits: Limits
    share_of: str | None = None

    @property
    def waiting(self) -> str:
        """The log's event when it is waited for."""
        return "waiting-for-share" if self.share_of else "waiting-for-custodian"

    @property
    def named(self) -> dict[str, str]:
        """What the log says of it."""
        share = {} if self.share_of is None else {"share_of": self.share_of}
        return {"custodian": str(self.address), **share}

    @override
    def __str__(self) -> str:
        return f"the custodian at {self.address}"

    async def fetch_unverified_certificate(self) -> bytes:
        """Returns the certificate that whoever listens there shows.

        Raises:
            ProtocolError: If nobody answers.
        """
        try:
            return await fetch_unverified_certificate(self.address)
        except ProtocolError as error:
            raise ProtocolError(
                f"no custodian answers at {self.address}",
                code="custodian-unreachable",
                expected=self.whose,
                got=error.got,
                remedy=f"Start it, or correct [{self.section}] in site.toml.",
            ) from error

    @asynccontextmanager
    async def call(self, certificate: CustodianCertificate) -> AsyncIterator[Call]:
        """Opens one session, to whoever holds the key of that certificate."""
        channel = open_channel(
            self.address,
            pinned_certificate=certificate.der,
            max_message_bytes=MAX_MESSAGE_BYTES,
        )
        async with channel:
            call: Call = channel.stream_stream(METHOD)()
            yield call

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Turns a custodian that breaks off or falls silent into an error of ours."""
        seconds = self.limits.handshake_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise broken_off(str(self), error) from error
        except TimeoutError as error:
            raise ProtocolError(
                f"{self} does not answer",
                code="enrolment-broken",
                expected=f"an answer within {seconds:g} s",
                got="nothing",
            ) from error


@asynccontextmanager
async def refusing(call: Call) -> AsyncIterator[None]:
    """Tells a custodian why this node will not go on, if it is this node's decision."""
    try:
        yield
    except (RefusedByPeer, PeerInTrouble):
        raise
    except CloisterError as error:
        await refuse(call, error)
        raise


async def patiently(
    attempt: Callable[[], Awaitable[_Result]],
    *,
    custodian: Callee,
    patience_seconds: float,
    log: FilteringBoundLogger,
) -> _Result:
    """Returns what an attempt gives; waits for a custodian, and for a consent.

    Args:
        attempt: What is tried.
        custodian: Which custodian, for the log.
        patience_seconds: How long it is tried again.
        log: Says once for each reason what is waited for.

    Raises:
        CloisterError: As `attempt` does, if that passes not at all, or not in time.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + patience_seconds
    pause = _FIRST_RETRY_SECONDS
    told: set[str] = set()
    while True:
        try:
            return await attempt()
        except CloisterError as error:
            if not _passes(error) or loop.time() >= give_up:
                raise
            if error.code not in told:
                told.add(error.code)
                log.warning(
                    custodian.waiting,
                    **custodian.named,
                    code=error.code,
                    reason=str(error),
                )
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LAST_RETRY_SECONDS)


def _passes(error: CloisterError) -> bool:
    return error.code in _WAITED_FOR or isinstance(error, PeerInTrouble)
