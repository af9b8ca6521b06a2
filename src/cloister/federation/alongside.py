"""One piece of work with others beside it: they live and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

Result = TypeVar("Result")


async def alongside(
    main: Coroutine[object, object, Result], *others: Coroutine[object, object, None]
) -> Result:
    """Returns what `main` returns; `others` run as long as it lasts.

    The first failure among all of them ends the rest and is raised; all have ended
    when this returns. Of two that fail at once, one beside `main` is the cause.

    Args:
        main: The work.
        others: Work that ends only by failing.
    """
    leading = asyncio.ensure_future(main)
    beside = [asyncio.ensure_future(work) for work in others]
    try:
        await asyncio.wait((leading, *beside), return_when=asyncio.FIRST_COMPLETED)
        for other in beside:
            if other.done():
                other.result()
        return await leading
    finally:
        leading.cancel()
        for other in beside:
            other.cancel()
        await asyncio.gather(leading, *beside, return_exceptions=True)
