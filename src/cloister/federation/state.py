"""Says when the server's state is marked: `ModelState.digest` takes its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# How much training may pass between two marks. Hashing every round would take longer
# than many a round.
MARK_SECONDS: Final = 5.0


class MarkTimer:
    """Says whether a mark is due.

    Args:
        elapsed: A counter of seconds that only rises.
    """

    def __init__(self, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._elapsed = elapsed
        self._last: float | None = None

    def take(self, *, final: bool) -> bool:
        """Returns whether the model published now carries a mark.

        It does if it is the server's first, if it is the final one, or if the last
        mark is `MARK_SECONDS` old.
        """
        now = self._elapsed()
        if not final and self._last is not None and now < self._last + MARK_SECONDS:
            return False
        self._last = now
        return True
