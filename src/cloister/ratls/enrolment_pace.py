"""How often one party's nodes may enrol in a minute.

Each admission is a record of some kilobytes in the run's audit, and one wait for the
disk. A node of a party with a good warrant enrols a few times a day; one that does so
in a loop would fill the server's disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cloister.errors import ProtocolError

_WINDOW_SECONDS = 60.0


@dataclass(slots=True)
class _Window:
    began: float
    taken: int = 0


class EnrolmentPace:
    """Counts every party's enrolments, minute by minute. May be used from any thread.

    Args:
        most: So many in a minute.
        elapsed: A counter of seconds.
    """

    def __init__(
        self, most: int, *, elapsed: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._elapsed = elapsed
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def take(self, party: str) -> None:
        """Counts an enrolment of a party, whose warrant holds.

        Raises:
            ProtocolError: If the party had its share of this minute.
        """
        now = self._elapsed()
        with self._lock:
            window = self._windows.get(party)
            if window is None or now - window.began >= _WINDOW_SECONDS:
                window = self._windows[party] = _Window(now)
            if window.taken >= self._most:
                raise ProtocolError(
                    "the party's nodes enrol too often",
                    code="server-busy",
                    expected=f"at most {self._most} enrolments in a minute",
                    remedy="Try again in a minute.",
                )
            window.taken += 1
