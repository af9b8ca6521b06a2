"""The host's clock: the one place that reads it."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Returns the host's time; nothing but a host vouches for it."""
    return datetime.now(UTC)
