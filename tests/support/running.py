"""Runs a test's coroutine on the session's event loop."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Protocol, TypeVar

Result = TypeVar("Result")


class Run(Protocol):
    """Runs a story to its end; the fixture `run` is one."""

    def __call__(self, story: Coroutine[object, object, Result]) -> Result:
        """Returns what the story returns, unless it takes too long."""
        ...
