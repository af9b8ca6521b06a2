"""Every file that is made in some directories, kept open: also one that is gone again.

By inotify, so nothing is missed between two looks. A file's content is read at the end,
through the descriptor that was opened when it appeared.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Numbers of <sys/inotify.h>.
_CREATE, _MOVED_TO = 0x100, 0x80
_EVENT = struct.Struct("iIII")
# What we write is less; a directory for temporary files is everybody's.
_MAX_BYTES = 1024 * 1024
_STOP = ".stop-watching"


class MadeFiles:
    """What was made while it watched.

    Attributes:
        seen: Every path that appeared, in order.
    """

    def __init__(self, directories: tuple[Path, ...]) -> None:
        self.seen: list[Path] = []
        self._opened: list[tuple[Path, int]] = []
        libc = ctypes.CDLL(None, use_errno=True)
        self._queue: int = libc.inotify_init1(os.O_CLOEXEC)
        assert self._queue >= 0, os.strerror(ctypes.get_errno())
        self._watched = {
            libc.inotify_add_watch(
                self._queue, os.fsencode(it), _CREATE | _MOVED_TO
            ): it
            for it in directories
        }
        assert min(self._watched) >= 0, os.strerror(ctypes.get_errno())
        self._first = directories[0]
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def contents(self) -> dict[str, bytes]:
        """Returns what the files held in the end, those that are gone among them."""
        return {
            f"{number} {path}": _beginning_of(descriptor)
            for number, (path, descriptor) in enumerate(self._opened)
        }

    def end(self) -> None:
        """Watches no more; what was seen can be read until `close`."""
        stop = self._first / _STOP
        stop.touch()
        self._thread.join()
        stop.unlink()

    def close(self) -> None:
        """Lets go of everything."""
        for descriptor in (self._queue, *(it for _, it in self._opened)):
            os.close(descriptor)

    def _follow(self) -> None:
        while True:
            events = os.read(self._queue, 64 * 1024)
            while events:
                watch, _, _, length = _EVENT.unpack_from(events)
                end = _EVENT.size + length
                name = events[_EVENT.size : end].rstrip(b"\0").decode()
                events = events[end:]
                if name == _STOP:
                    return
                self._open(self._watched[watch] / name)

    def _open(self, path: Path) -> None:
        self.seen.append(path)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path, flags)
        except OSError:
            return  # gone, or a socket, or somebody else's
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
            self._opened.append((path, descriptor))
        else:
            os.close(descriptor)


@contextmanager
def made_files(*directories: Path) -> Iterator[MadeFiles]:
    """Watches directories, not what lies below them, until the end of the block."""
    made = MadeFiles(directories)
    try:
        yield made
    finally:
        made.end()


def _beginning_of(descriptor: int) -> bytes:
    return os.pread(descriptor, _MAX_BYTES, 0)
