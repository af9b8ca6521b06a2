"""How often a worker may lose its server, and how soon it looks for the next one.

A server may be killed at any time; its party starts another, and nothing is lost but
time. But one that comes and goes, or a host that has it do so, must not keep a worker
busy for ever: only a round that was never seen before is a step forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from cloister.errors import CloisterError, ProtocolError, RefusedByPeer
from cloister.federation.line import SERVER_GONE

# Losses without a new round between them. Together with the pauses they give a server
# that cannot stay up about half a minute, beside the time that it is away.
MOST_LOSSES: Final = 20
# A server that is not there yet is asked often; a run should begin at once.
FIRST_PAUSE_SECONDS: Final = 0.1
LAST_PAUSE_SECONDS: Final = 2.0
# A node's own word for an admission that is over by its own clock.
ADMISSION_OVER: Final = "admission-over"
# How a server ends the calls of a node that has to attest again.
_ENDED = frozenset({"admission-lapsed", "admission-withdrawn"})
# How calls end when there is no server any more: it died, was stopped, or the network
# is cut. TLS says no more than that, too, when a certificate has expired.
_LOST = frozenset({SERVER_GONE, "server-stopped"})


class Ending(Enum):
    """Why a call ended that can be made again."""

    LAPSE = "lapse"
    LOSS = "loss"


def ending_of(error: CloisterError) -> Ending:
    """Returns why a call ended, if it can be made again.

    Raises:
        CloisterError: `error` itself, if not.
    """
    if isinstance(error, RefusedByPeer) and error.code in _ENDED:
        return Ending.LAPSE
    if isinstance(error, ProtocolError):
        if error.code == ADMISSION_OVER:
            return Ending.LAPSE
        if error.code in _LOST:
            return Ending.LOSS
    raise error


class Outages:
    """Counts what a worker lost, against what it came to see.

    Args:
        patience_seconds: A line to one server that held for so long was no flicker.
        elapsed: A counter of seconds that only rises.
    """

    def __init__(
        self, patience_seconds: float, *, elapsed: Callable[[], float] = time.monotonic
    ) -> None:
        self._patience_seconds = patience_seconds
        self._elapsed = elapsed
        self._admitted_at = elapsed()
        self._held = False
        self._losses = 0
        self._pause = 0.0
        self._furthest = 0

    def admitted(self) -> None:
        """Notes that a server admits this node from now on."""
        self._admitted_at = self._elapsed()

    def met(self, round_number: int) -> None:
        """Notes that a server's model of a round came."""
        self._pause = 0.0
        if round_number > self._furthest:
            self._furthest, self._losses = round_number, 0

    def lost(self, error: CloisterError) -> float:
        """Notes that a server is gone; returns the seconds to wait before the next try.

        Raises:
            CloisterError: `error`, if it happened too often without a new round.
        """
        self._held = self._elapsed() - self._admitted_at >= self._patience_seconds
        self._losses += 1
        if self._losses > MOST_LOSSES:
            raise error
        pause, self._pause = self._pause, next_pause(self._pause)
        return pause

    def same_again(self) -> None:
        """Notes that the server that was found is the one that was lost.

        So it was a cut on the way. If the line had held for a while it does not count:
        a round may last for hours, and networks forget connections that are idle.
        """
        if self._held:
            self._losses -= 1


def next_pause(seconds: float) -> float:
    """Returns the pause after one of `seconds`."""
    return min(max(2 * seconds, FIRST_PAUSE_SECONDS), LAST_PAUSE_SECONDS)
