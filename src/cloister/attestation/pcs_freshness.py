"""When collateral is fetched anew, and what is remembered of attempts that failed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cloister.attestation.checked_collateral import CheckedCollateral
from cloister.errors import CloisterError

# How long what was fetched is taken for the newest: so late is a revocation seen.
MAX_AGE = timedelta(hours=1)
# How long a failed attempt is left be. Not longer: a node that starts before the
# service does has nothing else to go by.
REFRESH_PAUSE = timedelta(minutes=1)


@dataclass(slots=True, kw_only=True)
class Attempts:
    """What was tried for one key.

    Attributes:
        lock: Held while it is fetched, for this key alone: a service that is slow about
            one platform holds up nobody who asks about another.
        failed_at: When the newest attempt failed; None if it did not.
        failure: Why.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    failed_at: datetime | None = None
    failure: CloisterError | None = None

    def fresh_failure(self, now: datetime) -> CloisterError | None:
        """Returns why it failed, if that is so recent that nothing is tried again."""
        at = self.failed_at
        # A clock that was set back does not make the pause longer.
        recent = at is not None and at <= now < at + REFRESH_PAUSE
        return self.failure if recent else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usable:
    """What is kept for a key and passed every check at this time.

    Attributes:
        checked: The collateral.
        fetched_at: When it came, in Unix seconds.
    """

    checked: CheckedCollateral
    fetched_at: float

    def due(self, now: datetime) -> bool:
        """Returns whether it is to be fetched anew."""
        age = now.timestamp() - self.fetched_at
        # Below zero: the clock was set back, and nothing says how old it is.
        aged = not 0 <= age < MAX_AGE.total_seconds()
        refresh_at = self.checked.refresh_at
        return aged or self.fetched_at < refresh_at.timestamp() <= now.timestamp()
