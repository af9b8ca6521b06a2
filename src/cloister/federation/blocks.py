"""Cuts a stretch of parameters into blocks that stay in a core's cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

# Values that one operation works on; 256 KiB of float32.
BLOCK: Final = 65_536


def blocks_of(start: int, stop: int, *, within: int = BLOCK) -> Iterator[slice]:
    """Yields the blocks from `start` to `stop`, in order.

    Args:
        start: The first parameter.
        stop: The one after the last.
        within: No block crosses a multiple of this: the parameters in a chunk.
    """
    step = math.gcd(BLOCK, within)
    while start < stop:
        end = min(stop, (start // step + 1) * step)
        yield slice(start, end)
        start = end
