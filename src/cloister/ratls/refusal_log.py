"""Refusals in a log that a flood cannot fill.

Anybody can be refused, as often as they like, before they have shown who they are. So
the first refusals of each minute are told one by one, and the others are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

TOLD_PER_MINUTE = 30
_WINDOW_SECONDS = 60.0


class RefusalLog:
    """Tells refusals, not too many of them.

    Args:
        log: Receives one line for a refusal, and one with a count for those left out.
        elapsed: A counter of seconds.
    """

    def __init__(
        self,
        log: FilteringBoundLogger,
        *,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._elapsed = elapsed
        self._began = elapsed()
        self._told = 0
        self.untold = 0

    def warning(self, event: str, **words: str) -> None:
        """Tells or counts one refusal."""
        if self._elapsed() - self._began >= _WINDOW_SECONDS:
            self.close()
            self._began = self._elapsed()
            self._told = 0
        if self._told < TOLD_PER_MINUTE:
            self._told += 1
            self._log.warning(event, **words)
        else:
            self.untold += 1

    def close(self) -> None:
        """Tells how many refusals were left out since the last count, if any."""
        if self.untold:
            self._log.warning("refusals-left-out", count=self.untold)
            self.untold = 0
