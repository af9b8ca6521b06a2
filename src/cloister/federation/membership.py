"""Keeps a worker admitted to its server for as long as the run lasts.

An admission lapses by time and by rounds. It is renewed at half of either, by a whole
new mutual handshake with the same TLS key. The server's table goes by that key, so a
call that is open then goes on; later calls use a channel with the new certificate.

A server may also die, and another of its party take its place. The node then attests
whoever answers at the same address: a server of the same plan, with a higher epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn, Self

import grpc
from structlog.typing import FilteringBoundLogger

from cloister.errors import (
    CloisterError,
    PeerInTrouble,
    ProtocolError,
    VerificationError,
)
from cloister.federation.custodian import Custodian
from cloister.federation.layout import ModelBuffer
from cloister.federation.line import Line
from cloister.federation.outages import (
    ADMISSION_OVER,
    Ending,
    Outages,
    ending_of,
    next_pause,
)
from cloister.federation.warranting import (
    FIRST_RETRY_SECONDS,
    LAST_RETRY_SECONDS,
    LOOK_SECONDS,
    Renewal,
    seconds_in_force,
    seconds_to_renewal,
)
from cloister.federation.wire_format import WireFormat
from cloister.plan.site import Address
from cloister.ratls.certificate import CLOCK_TOLERANCE
from cloister.ratls.channels import MAX_CHUNK_BYTES, ClientTls, open_channel
from cloister.ratls.enrolling import Enrolled, enrol, renew
from cloister.ratls.enrolment_service import describe_peer
from cloister.ratls.node import Node

# What is otherwise a moment later: who is on the way could end a node with one packet.
_WAITED_FOR = frozenset(
    {
        "server-unreachable",
        "server-busy",
        "enrolment-broken",
        "custodian-unreachable",
        "custodian-busy",
    }
)


@dataclass(slots=True)
class _Admission:
    """One admission, and the channel made with its certificate."""

    channel: grpc.aio.Channel
    line: Line
    expires_at: datetime
    renew_at: datetime
    renew_round: int
    calls: int = 0


class Membership:
    """A worker's place in the run: a context that begins with an enrolment.

    Args:
        node: The worker's node.
        custodian: Renews its warrant.
        model: Where models land.
        wire: How they and updates travel.
        enrolment: The server's enrolment port.
        training: The server's training port.
        patience_seconds: How long to wait for a server to appear, at first and after
            each loss.
        log: One line for each admission.
    """

    def __init__(  # noqa: PLR0913 - all it takes to be admitted
        self,
        node: Node,
        custodian: Custodian,
        *,
        model: ModelBuffer,
        wire: WireFormat,
        enrolment: Address,
        training: Address,
        patience_seconds: float,
        log: FilteringBoundLogger,
    ) -> None:
        self._node = node
        self._warrant = Renewal(node, custodian, log=log)
        self._model = model
        self._wire = wire
        self._enrolment = enrolment
        self._training = training
        self._patience_seconds = patience_seconds
        self._log = log
        self._outages = Outages(patience_seconds)
        self._admission: _Admission | None = None
        self._lent: _Admission | None = None
        self._round = 1
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._attest_patiently()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._admission is not None:
            await self._admission.channel.close()

    @asynccontextmanager
    async def line(self) -> AsyncIterator[Line]:
        """Lends the newest line for one call.

        Raises:
            ProtocolError: If the admission is over, whatever the server's table says:
                what the server showed for itself does not last longer either.
        """
        lent = self._lent = self._current()
        if self._node.clock() - CLOCK_TOLERANCE >= lent.expires_at:
            raise _over(lent)
        lent.calls += 1
        try:
            yield lent.line
        finally:
            lent.calls -= 1
            if lent is not self._admission and not lent.calls:
                await lent.channel.close()

    def note_round(self, number: int) -> None:
        """Notes the round of a model that came; at some rounds a renewal is due."""
        self._round = number
        self._outages.met(number)
        if number >= self._current().renew_round:
            self._wake.set()

    async def keep(self) -> NoReturn:
        """Renews the admission whenever half of it is over, until cancelled.

        Whatever hinders it may pass, so it tries again. It does so after a lapse too:
        what that means is decided by the call that the server ends.

        Raises:
            VerificationError: If the server is not what it was, or this node is not
                admitted any more.
        """
        pause, told = FIRST_RETRY_SECONDS, False
        while True:
            await self._until_due()
            try:
                async with self._turn:
                    # It may have been renewed while another handshake was under way.
                    if self._seconds_to_renewal() <= 0:
                        await self._attest()
            except CloisterError as error:
                if isinstance(error, VerificationError) and not _passes(error):
                    raise
                if not told:
                    self._log.warning(
                        "renewal-failed", code=error.code, reason=str(error)
                    )
                told = True
            else:
                pause, told = FIRST_RETRY_SECONDS, False
            # Also after a success: where clocks differ, every admission looks old.
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_RETRY_SECONDS)

    def is_current(self, line: Line) -> bool:
        """Returns whether a line that was lent leads to the server of the newest one.

        A host may run two servers, and a renewal meet the newer one while a call to the
        older is open.
        """
        return line.server.node == self._current().line.server.node

    async def recover(self, error: CloisterError, *, lapsed: bool) -> Ending:
        """Attests again if `error` ended a call that can be made again; returns why.

        It can where the admission was over (a lapse), and where the server is gone (a
        loss): it waits for one then, as at the beginning.

        Args:
            error: What ended the call.
            lapsed: Whether the call before it ended with a lapse, too.

        Raises:
            CloisterError: `error` itself, if it says anything else, if it is a second
                lapse, or if servers go away all the time; or why this node is not
                admitted again.
        """
        ending = ending_of(error)
        if ending is Ending.LAPSE and lapsed:
            raise error
        lost = self._lent or self._current()
        pause = 0.0
        if ending is Ending.LAPSE:
            self._log.warning("admission-ended", code=error.code, reason=str(error))
        else:
            self._log.warning("server-lost", code=error.code, reason=str(error))
            pause = self._outages.lost(error)
        async with self._turn:
            # A renewal may have been under way while the call ended.
            if self._current() is lost:
                await asyncio.sleep(pause)
                await self._attest_patiently()
        same = self._current().line.server.node == lost.line.server.node
        if ending is Ending.LOSS and same:
            self._outages.same_again()
        return ending

    async def _attest_patiently(self) -> None:
        """Enrols, waiting for a server that is not there yet, or busy."""
        give_up = time.monotonic() + self._patience_seconds
        pause, waiting = next_pause(0.0), False
        while True:
            try:
                return await self._attest()
            except CloisterError as error:
                if not self._may_pass(error) or time.monotonic() >= give_up:
                    raise
                if not waiting:
                    self._log.info(
                        "waiting-for-server",
                        enrolment=str(self._enrolment),
                        code=error.code,
                    )
                waiting = True
            await asyncio.sleep(pause)
            pause = next_pause(pause)

    def _may_pass(self, error: CloisterError) -> bool:
        """Returns whether another try may end better.

        While an admission is in force, so may anything that is not the server's own
        word: whoever is on the way can answer in its place, and must not end this node.
        """
        return _passes(error) or (
            isinstance(error, ProtocolError) and self._is_in_force()
        )

    async def _attest(self) -> None:
        """One mutual handshake, with a warrant that lasts if it can be had."""
        if seconds_to_renewal(self._node) <= 0:
            error = await self._warrant.attempt()
            if error is not None and seconds_in_force(self._node) <= 0:
                raise error
        if self._is_in_force():
            # Whoever else answers there now must not end this node.
            await self._hold(await renew(self._node, self._enrolment))
        else:
            await self._hold(await enrol(self._node, self._enrolment))

    def _is_in_force(self) -> bool:
        held = self._admission
        return held is not None and self._node.clock() < held.expires_at

    async def _hold(self, enrolled: Enrolled) -> None:
        admittance, node = enrolled.admittance, self._node
        channel = open_channel(
            self._training,
            pinned_certificate=enrolled.server_certificate,
            max_message_bytes=MAX_CHUNK_BYTES,
            client=ClientTls(
                identity=node.identity, admission_certificate=admittance.certificate
            ),
        )
        now, rounds = node.clock(), node.plan.admission.rounds
        former, self._admission = (
            self._admission,
            _Admission(
                channel=channel,
                line=Line(
                    channel, admittance.server, model=self._model, wire=self._wire
                ),
                expires_at=admittance.expires_at,
                renew_at=now + (admittance.expires_at - now) / 2,
                # Of an odd number the larger half: to renew in the very round of the
                # admission would gain nothing.
                renew_round=admittance.last_round - rounds // 2 + 1,
            ),
        )
        self._outages.admitted()
        if former is None or former.line.server.node != admittance.server.node:
            # This one may be at an earlier round than the former one was.
            self._round = 1
            self._log.info("server-attested", **describe_peer(admittance.server))
        else:
            self._log.info(
                "admission-renewed",
                expires_at=f"{admittance.expires_at:%Y-%m-%d %H:%M:%SZ}",
                last_round=admittance.last_round,
            )
        if former is not None and not former.calls:
            await former.channel.close()

    async def _until_due(self) -> None:
        while (left := self._seconds_to_renewal()) > 0:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK_SECONDS)):
                    await self._wake.wait()

    def _seconds_to_renewal(self) -> float:
        admission = self._current()
        if self._round >= admission.renew_round:
            return 0.0
        return (admission.renew_at - self._node.clock()).total_seconds()

    def _current(self) -> _Admission:
        if self._admission is None:
            raise RuntimeError("enter the context first")
        return self._admission


def _over(admission: _Admission) -> ProtocolError:
    return ProtocolError(
        "this node's admission is over",
        code=ADMISSION_OVER,
        expected=f"use before {admission.expires_at:%Y-%m-%d %H:%M:%SZ}",
    )


def _passes(error: CloisterError) -> bool:
    return error.code in _WAITED_FOR or isinstance(error, PeerInTrouble)
