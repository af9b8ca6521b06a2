"""How many refusals of one party are recorded one by one.

An admitted node can be refused as often as it likes; a log that keeps evidence must not
grow as fast.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

RECORDED_PER_MINUTE = 30
_WINDOW_SECONDS = 60.0


@dataclass(slots=True)
class _Window:
    began: float
    taken: int = 0
    left_out: int = 0


class RefusalBudget:
    """Counts the refusals of every party, minute by minute.

    Args:
        elapsed: A counter of seconds.
    """

    def __init__(self, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._elapsed = elapsed
        self._windows: dict[str, _Window] = {}

    def admits(self, party: str) -> bool:
        """Returns whether one more refusal is to be recorded; counts it if not.

        What is `due` must have been taken away before.
        """
        window = self._windows.setdefault(party, _Window(self._elapsed()))
        if window.taken < RECORDED_PER_MINUTE:
            window.taken += 1
            return True
        window.left_out += 1
        return False

    def due(self) -> list[tuple[str, int]]:
        """Returns how many were left out, by party, in minutes that are over."""
        now = self._elapsed()
        # In the order in which they began: the first that is not over ends the search.
        over = itertools.takewhile(
            lambda it: now - it[1].began >= _WINDOW_SECONDS, self._windows.items()
        )
        return self._take(party for party, _ in over)

    def rest(self) -> list[tuple[str, int]]:
        """Returns how many were left out, by party, and were never returned."""
        return self._take(self._windows)

    def _take(self, parties: Iterable[str]) -> list[tuple[str, int]]:
        over = [(party, self._windows.pop(party)) for party in list(parties)]
        return [(party, window.left_out) for party, window in over if window.left_out]
