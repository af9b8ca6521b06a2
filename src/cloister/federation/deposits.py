"""Brings marks to the party's custodian while a node trains, which it must hear of.

A custodian that learns nothing remembers nothing: a host that keeps it away could train
a run, put it back, and train it again. So training goes only as far as deposits do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec
from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ProtocolError, VerificationError
from cloister.federation.custodian import Custodian
from cloister.ratls.epochs import Epoch
from cloister.ratls.mark import Mark

# Without a new mark the newest is deposited again: so a node without news, one that
# waits for others, is still heard, and learns that another one has taken its place.
REPEAT_SECONDS = 60.0
# After a failure.
RETRY_SECONDS = 5.0
# For one that was begun when the time was almost over.
LAST_TRY_SECONDS = 5.0
# A wait is cut into pieces of this length.
LOOK_SECONDS = 10.0
# Of the time that a custodian may be silent, so that there are some tries.
_TRIES = 4


class Deposits:
    """Brings marks to the party's custodian beside the training, one at a time.

    The newest mark takes the place of one that waits. `keep` does the work; the others
    wait for it, so it runs beside them.

    Args:
        custodian: The party's custodian.
        silence_seconds: Longest time without a deposit; it begins with the first mark.
        log: One line for each time that the custodian is away.
        elapsed: A counter of seconds that only rises.
    """

    def __init__(
        self,
        custodian: Custodian,
        *,
        silence_seconds: float,
        log: FilteringBoundLogger,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._custodian = custodian
        self._silence_seconds = silence_seconds
        self._log = log
        self._elapsed = elapsed
        self._newest: Mark | None = None
        self._deposited: Mark | None = None
        # When the newest mark that the custodian has was on its way to it.
        self._heard_at = 0.0
        self._due = asyncio.Event()
        self._made = asyncio.Event()
        self._away = False
        self._reason = "no answer"

    @property
    def offered(self) -> int | None:
        """The round of the newest mark; None before the first."""
        return None if self._newest is None else self._newest.round

    def offer(self, mark: Mark) -> None:
        """Has `mark` deposited as soon as may be; returns at once."""
        if self._newest is None:
            self._heard_at = self._elapsed()
        self._newest = mark
        self._due.set()

    def follow(self, audit_head: bytes) -> None:
        """Has the newest mark deposited again, with a later head of the audit log.

        What a server records between two marks could be cut unseen otherwise.
        """
        if self._newest is not None and self._newest.audit_head != audit_head:
            self.offer(msgspec.structs.replace(self._newest, audit_head=audit_head))

    async def begun(self) -> None:
        """Waits until the custodian has a mark of the server that the newest is of.

        Nothing is done for a server before the party's own memory knows of it.
        """
        while self._newest is not None and _server(self._deposited) != _server(
            self._newest
        ):
            await self._next()

    async def reached(self, round_number: int) -> None:
        """Waits until the custodian has a mark of this round, or of a later one.

        Not for the newest: the log may go on while it is on its way, and it follow.
        """
        while self._deposited is None or self._deposited.round < round_number:
            await self._next()

    async def settled(self) -> None:
        """Waits until the custodian has the newest mark."""
        if self._away and self._newest is not None:
            self._log.warning("last-mark-waits", round=self._newest.round)
        while self._deposited != self._newest:
            await self._next()

    async def keep(self) -> NoReturn:
        """Deposits what is offered, until cancelled.

        Raises:
            VerificationError: If the custodian refuses a mark: it contradicts what the
                party knows, or another node has taken this one's place.
            ProtocolError: If no deposit was made for `silence_seconds`.
        """
        while True:
            await self._deposit(await self._until_due())

    async def _until_due(self) -> Mark:
        """Returns the next mark to be deposited, when it is time."""
        repeat = min(REPEAT_SECONDS, self._silence_seconds / _TRIES)
        at = self._elapsed() + (RETRY_SECONDS if self._away else repeat)
        while not self._due.is_set():
            pause = LOOK_SECONDS
            if self._newest is not None:
                pause = min(at - self._elapsed(), self._left(), LOOK_SECONDS)
                if pause <= 0:
                    break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._due.wait()
        self._due.clear()
        if self._newest is None:
            raise RuntimeError("due without a mark")
        return self._newest

    async def _deposit(self, mark: Mark) -> None:
        began = self._elapsed()
        try:
            # A custodian that takes its time must not stretch the silence; a machine
            # that slept all the while has one try.
            async with asyncio.timeout(max(self._left(), LAST_TRY_SECONDS)):
                await self._custodian.deposit(mark)
        except VerificationError:
            raise
        except TimeoutError:
            self._away = True
        except CloisterError as error:
            self._reason = error.code
            if not self._away:
                self._log.warning(
                    "deposit-failed",
                    round=mark.round,
                    code=error.code,
                    reason=str(error),
                )
            self._away = True
        else:
            self._away, self._heard_at = False, began
            self._deposited = mark
            self._made.set()
        if self._left() <= 0:
            raise self._silent()

    def _left(self) -> float:
        return self._heard_at + self._silence_seconds - self._elapsed()

    async def _next(self) -> None:
        self._made.clear()
        await self._made.wait()

    def _silent(self) -> ProtocolError:
        return ProtocolError(
            "this party's custodian could not be told how far the run has come",
            code="custodian-silent",
            expected=f"a deposit within {self._silence_seconds:g} s",
            got=self._reason,
            remedy="Let the custodian be reached, and start again. The time is"
            " [admission] custodian_silence_seconds in the plan.",
        )


def _server(mark: Mark | None) -> Epoch | None:
    return None if mark is None else Epoch(mark.server_epoch, mark.server_key)
