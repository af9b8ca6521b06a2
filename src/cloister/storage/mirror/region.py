"""What a mirror lies on, as bytes at offsets: stores, and when they are durable.

The words are Romulus': a store is seen by this process at once; `Region.flush` asks
for it to be written back (PWB); after `Region.fence` all that was flushed is durable.
Without a fence between them, stores become durable in any order, in part, or never;
but for eight bytes at a multiple of eight, which do so together or not at all.

What a region does not do: know what lies in it, or protect it from its host.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final, Protocol

from typing_extensions import Buffer

from cloister.errors import StorageError
from cloister.storage.mirror.subject import Survives

# What a file system writes back at once. What must not share a write has its own.
PAGE: Final = 4096
# Eight bytes at a multiple of eight are stored, and become durable, as one.
WORD: Final = 8

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Region(Protocol):
    """A range of bytes on a medium, held by this process alone.

    Several threads may write and read at once, on ranges that do not overlap; `flush`,
    `fence`, `publish` and `close` are called by one thread, after those that wrote have
    told it that they are done.

    Offsets and lengths are in bytes; whoever reaches outside of the region gets a
    `ValueError`. Every method but `close` raises `StorageError` (``mirror-full``,
    ``mirror-unwritable``) where the medium fails, and from then on always: what is
    durable then is found by opening it again.
    """

    @property
    def path(self) -> Path:
        """Where it lies, for messages."""

    @property
    def size(self) -> int:
        """Its length in bytes, a multiple of `PAGE`."""

    @property
    def survives(self) -> Survives:
        """What the bytes outlive once a fence has returned."""

    def write(self, offset: int, data: Buffer) -> None:
        """Stores contiguous `data`; durable only once flushed and fenced."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills a contiguous, writable `buffer` with what was stored last."""

    def flush(self, offset: int, length: int) -> None:
        """Asks for all stores in a range to be written back."""

    def fence(self) -> None:
        """Returns when all that was flushed is durable."""

    def publish(self) -> None:
        """Gives a new region its name, durably; one that was opened has it already.

        A new region that is closed before is gone. Whoever publishes what is whole
        never finds a part of it.
        """

    def close(self) -> None:
        """Gives it up, and its lock. Nothing is made durable. A second call is none."""


def whole_pages(size: int) -> int:
    """Returns `size` bytes, rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def check_range(offset: int, length: int, *, limit: int) -> None:
    """Checks that a range lies in the first `limit` bytes.

    Raises:
        ValueError: If it does not.
    """
    if offset < 0 or length < 0 or offset + length > limit:
        raise ValueError(f"{length} bytes at {offset}, where there are {limit}")


def settle(region: Region, length: int) -> None:
    """Makes all that is seen in the first `length` bytes durable.

    A process that was killed has left stores that are seen and were never fenced, and
    who put a copy back may not have synced it. Whoever believes what it finds must
    first know that a power cut leaves it so.

    Raises:
        StorageError: If the medium fails.
    """
    region.flush(0, length)
    region.fence()


def medium_failed(
    path: Path, error: OSError, *, size: int | None = None
) -> StorageError:
    """Returns what to raise when a medium fails.

    Args:
        path: The mirror's file.
        error: What the kernel said.
        size: Bytes that are needed, where a file was to be made.
    """
    if error.errno in _NO_ROOM:
        return StorageError(
            f"there is no room for the state {path}",
            code="mirror-full",
            expected="room on its medium" if size is None else f"{size} bytes of room",
            got=error.strerror or "an error",
            remedy="Make room, or name a directory on a larger medium.",
        )
    return StorageError(
        f"cannot keep the state {path}",
        code="mirror-unwritable",
        expected="a file that this user can write to, on a medium that keeps it",
        got=error.strerror or "an error",
        remedy="Correct its permissions or its medium, and start again; what was"
        " kept before is still there.",
    )
