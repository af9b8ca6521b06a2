"""One process at a time: locks on files, and on a party's state directory.

A node takes its directory's lock before it asks for a warrant: two that start at once
must not both be admitted, and a node that is started again waits for its dying
predecessor. The kernel gives a lock back when its process is dead, however it died.

It is the host's lock, and no protection from the host: who starts two nodes from one
state is found out by their marks and heads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cloister.errors import StorageError
from cloister.storage.mirror.region import medium_failed

# How soon a lock that was given up is noticed.
POLL_SECONDS: Final = 0.05

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(
    path: Path,
    *,
    patience_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Holds the lock file `path` until the block ends; made if absent, never removed.

    Args:
        path: The lock file; its directory exists.
        patience_seconds: How long to wait for whoever has it; 0 asks once.
        sleep: Waits between two tries, in seconds.

    Raises:
        StorageError: If another process still has it (``mirror-in-use``), or it
            cannot be made (``mirror-unwritable``).
    """
    # Not removed at the end: who waits for a file without a name would get it beside
    # one who makes the name anew.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise medium_failed(path, error) from error
    try:
        _take_patiently(descriptor, path, patience_seconds, sleep)
        yield
    finally:
        os.close(descriptor)


def take(descriptor: int, path: Path) -> None:
    """Locks an open file for as long as it is open.

    Args:
        descriptor: The file.
        path: Its name, for messages.

    Raises:
        StorageError: If another process has it (``mirror-in-use``), or the file system
            has no locks (``mirror-unwritable``).
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(
            f"another process has {path}",
            code="mirror-in-use",
            expected="one process at a time",
            remedy="Stop the other one first.",
        ) from error
    except OSError as error:
        # Gramine has no flock unless its manifest asks for it by name, and there it
        # would hold within one enclave only.
        if error.errno != errno.ENOSYS:
            raise medium_failed(path, error) from error
        _log.warning("no file locks here: nothing keeps two writers from %s", path)


def _take_patiently(
    descriptor: int,
    path: Path,
    patience_seconds: float,
    sleep: Callable[[float], None],
) -> None:
    for _ in range(int(patience_seconds / POLL_SECONDS)):
        try:
            return take(descriptor, path)
        except StorageError as error:
            if error.code != "mirror-in-use":
                raise
        sleep(POLL_SECONDS)
    return take(descriptor, path)
