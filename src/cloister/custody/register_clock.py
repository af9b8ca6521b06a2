"""Times in the register: how long a warrant lasts, and a clock that goes one way."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from cloister.custody.register_tables import Rows
from cloister.errors import ConfigError, VerificationError
from cloister.ratls.certificate import CLOCK_TOLERANCE

# No warrant outlives a week: a party that withdraws must not wait longer.
MAX_LIFE: Final = timedelta(days=7)

_SECOND = timedelta(seconds=1)


def checked_life(life: timedelta) -> int:
    """Returns a warrant's life in whole seconds.

    Raises:
        ConfigError: If it is no time, or longer than `MAX_LIFE`.
    """
    if not _SECOND <= life <= MAX_LIFE:
        raise ConfigError(
            "a warrant cannot last that long, or that short",
            code="warrant-life",
            expected=f"from one second to {MAX_LIFE.days} days",
            got=str(life),
            remedy="Correct warrant_hours in custodian.toml.",
        )
    return life // _SECOND


def checked_time(rows: Rows, at: datetime) -> int:
    """Returns `at` in Unix seconds, unless the clock was set back.

    Whoever sets the clock back would get warrants for a time that was over, and could
    tell no longer which of two things came first.

    Raises:
        VerificationError: If it was (``clock-behind``).
    """
    now = int(at.timestamp())
    newest = rows.head.newest_at
    if now < max(newest - CLOCK_TOLERANCE // _SECOND, 0):
        raise VerificationError(
            "the custodian's clock is behind its own database",
            code="clock-behind",
            expected=f"at least {newest} (Unix time), less"
            f" {CLOCK_TOLERANCE // timedelta(minutes=1)} minutes",
            got=str(now),
            remedy="Set the clock of the custodian's machine.",
        )
    return now


def any_time(at: datetime) -> int:
    """Returns `at` in Unix seconds, for what a wrong clock does not hinder."""
    return max(int(at.timestamp()), 0)
