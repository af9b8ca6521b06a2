"""A node's time: the host's clock above a floor of signed times.

Time belongs to the host. It may set its clock back or stop it, so that what has expired
is in force again. So a node's time has a floor: the newest signed time that it has
verified, and from there on the time that has passed in this process. The host's clock
counts only where it is later.

What is left to the host: it can set its clock forward, which makes things expire early
and stops the node. Inside an enclave it also keeps the counter behind `elapsed`, so it
can slow time down; it can never bring time below the floor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cloister.errors import VerificationError
from cloister.ratls.certificate import CLOCK_TOLERANCE

_LATEST = datetime.max.replace(tzinfo=UTC)


class FlooredClock:
    """Tells the time in UTC; never goes back, and never below its floor.

    All methods may be called from any thread.

    Args:
        host: The host's clock; it gives aware times.
        elapsed: A counter of seconds that only rises.
    """

    def __init__(
        self,
        host: Callable[[], datetime],
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._floor: datetime | None = None
        self._raised_at = 0.0
        self._told: datetime | None = None

    def __call__(self) -> datetime:
        """Returns the time: the host's, or the floor's if that is later."""
        with self._lock:
            return self._tell(_in_utc(self._host()))

    def raise_floor(self, to: datetime, *, source: str) -> None:
        """Takes a signed time as a new floor; an older one changes nothing.

        The caller has verified the signature. It may be anybody's: one who signs a
        time far ahead could make all that others signed expire, so it is bounded.

        Args:
            to: The signed time.
            source: What it was signed in, for the error, such as "the consent of
                'alice'".

        Raises:
            VerificationError: If it is more than `CLOCK_TOLERANCE` from now.
        """
        to = _in_utc(to)
        with self._lock:
            now = self._tell(_in_utc(self._host()))
            if to - now > CLOCK_TOLERANCE:
                raise VerificationError(
                    f"{source} is of the future",
                    code="clock-ahead",
                    expected=f"a time up to {CLOCK_TOLERANCE} after {_show(now)}",
                    got=_show(to),
                    remedy="Set this machine's clock right, or that of the signer.",
                )
            self._raise(to)

    def trust_custodian(self, to: datetime) -> None:
        """Takes a time signed by this node's own custodian as a new floor.

        The custodian speaks for the party whose node this is, so there is no bound. A
        clock that is behind by hours is put right by it; one that lies before the
        custodian's certificate or a consent never gets so far.
        """
        to = _in_utc(to)
        with self._lock:
            self._raise(to)

    def behind(self) -> timedelta:
        """Returns how far the host's clock is behind this one; zero if it is not."""
        with self._lock:
            host = _in_utc(self._host())
            return self._tell(host) - host

    def _tell(self, host: datetime) -> datetime:
        told = max(t for t in (host, self._risen_floor(), self._told) if t is not None)
        self._told = told
        return told

    def _raise(self, to: datetime) -> None:
        floor = self._risen_floor()
        if floor is None or to > floor:
            self._floor, self._raised_at = to, self._elapsed()

    def _risen_floor(self) -> datetime | None:
        if self._floor is None:
            return None
        # A counter that fell must not bring the floor down.
        passed = timedelta(seconds=max(self._elapsed() - self._raised_at, 0.0))
        return self._floor + min(passed, _LATEST - self._floor)


def _in_utc(time: datetime) -> datetime:
    if time.utcoffset() is None:
        raise ValueError("a time without a zone")
    return time.astimezone(UTC)


def _show(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%SZ}"
