"""Runs a test's coroutine on the session's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Protocol, TypeVar

Result = TypeVar("Result")


class Run(Protocol):
    """Runs a story to its end; the fixture `run` is one."""

    def __call__(self, story: Coroutine[object, object, Result]) -> Result:
        """Returns what the story returns, unless it takes too long."""
        ...


async def until(condition: Callable[[], bool]) -> None:
    """Lets everybody else work until something is so."""
    while not condition():  # noqa: ASYNC110 - the other side has no event to give
        await asyncio.sleep(0)
