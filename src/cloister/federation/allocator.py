"""Settles how this process gets its memory, for messages of a megabyte.

glibc gives every block of that size back to the system as it is freed, and gets it anew
for the next message: each of its pages is then cleared and mapped once more, which
costs a third of a round. It also keeps a heap for each thread, of which none is ever
small again: with a thousand workers that was a gigabyte. So blocks up to 32 MiB come
from one heap, and that is kept (`docs/performance.md` has the measurements).
"""

from __future__ import annotations

import ctypes
from typing import Final

from cloister.errors import PlatformError

# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_SETTINGS: Final = (
    (_M_ARENA_MAX, 1),
    (_M_MMAP_THRESHOLD, 32 * 2**20),  # the most that glibc takes
    (_M_TRIM_THRESHOLD, 2**30),
)


def settle_allocator() -> None:
    """Has this process keep its heap; to be called before it has several threads.

    Where the C library is not glibc there is nothing to settle, and rounds take longer.

    Raises:
        PlatformError: If glibc refuses a setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for setting, value in _SETTINGS:
        if mallopt(setting, value) != 1:
            raise PlatformError(
                "the C library's allocator refuses a setting",
                code="allocator-refused",
                expected=f"mallopt({setting}, {value}) to be taken",
                got="0",
                remedy="Report it, with the name and version of the C library.",
            )
