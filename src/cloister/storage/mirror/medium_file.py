"""The file under a region: made whole before it has its name, held by one process.

What this module does not do: read or write what lies in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final, Self

from cloister.errors import StorageError
from cloister.storage.mirror.refusals import damaged
from cloister.storage.mirror.region import PAGE, medium_failed, whole_pages
from cloister.storage.mirror.subject import Survives
from cloister.storage.mirror.volatile_mounts import survives_at
from cloister.storage.mirror.writer_lock import take

_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_ZEROS: Final = bytes(2**20)


class MediumFile:
    """A file of whole pages, open and locked; made by `open` or `create`.

    All of its bytes that are used have room on the medium, so that no store to a
    mapping of it finds the medium full (which would end the process, with no word why).
    """

    def __init__(self, path: Path, descriptor: int, *, named: bool) -> None:
        self.path: Final = path
        self.descriptor: Final = descriptor
        self.size: Final = os.fstat(descriptor).st_size
        self.survives: Final[Survives] = survives_at(path)
        self._named = named
        self._closed = False

    @classmethod
    def open(cls, path: Path, *, room: int) -> Self:
        """Returns the file `path`, its name durable.

        Args:
            path: Its name.
            room: How many of its bytes have to have room on the medium. A host could
                put a file of holes there, and have the medium filled by its length.

        Raises:
            StorageError: If there is none (``mirror-missing``), another process has it
                (``mirror-in-use``), it is no whole number of pages
                (``mirror-damaged``), or it cannot be used (``mirror-unwritable``,
                ``mirror-full``).
        """
        try:
            descriptor = os.open(path, _FLAGS)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StorageError(
                f"there is no state {path}",
                code="mirror-missing",
                expected="a file that a node kept its state in",
                remedy="Put it back, or begin the run anew with --fresh.",
            ) from error
        except OSError as error:
            raise medium_failed(path, error) from error
        with _closing(descriptor) as undo:
            take(descriptor, path)
            size = _size_of(path, descriptor)
            # A copy that somebody put back may have holes, which have no room.
            _reserve(path, descriptor, min(size, whole_pages(room)))
            _make_name_durable(path)
            undo.pop_all()
        return cls(path, descriptor, named=True)

    @classmethod
    def create(cls, path: Path, *, size: int) -> Self:
        """Returns a new file of zeros beside `path`, which `publish` names so.

        Args:
            path: Its name.
            size: Its length in bytes, rounded up to whole pages.

        Raises:
            StorageError: If there is one (``mirror-exists``), another process makes
                one (``mirror-in-use``), there is no room (``mirror-full``), or it
                cannot be made (``mirror-unwritable``). Nothing is left behind.
        """
        unnamed = _unnamed(path)
        descriptor = _open_new(unnamed)
        with _closing(descriptor) as undo:
            take(descriptor, unnamed)
            undo.callback(_remove, unnamed)
            # Everybody who makes one here holds that lock, so none appears meanwhile.
            if os.path.lexists(path):
                raise StorageError(
                    f"there is a state {path} already",
                    code="mirror-exists",
                    expected="no file of that name",
                    remedy="Go on with it, or move it away.",
                )
            size = whole_pages(size)
            _reserve(path, descriptor, size)
            _fill(path, descriptor, size)
            undo.pop_all()
        return cls(path, descriptor, named=False)

    def publish(self) -> None:
        """Gives it its name, durably; does nothing where it has it.

        Raises:
            StorageError: If it cannot be named (``mirror-unwritable``).
        """
        if self._named:
            return
        try:
            os.fsync(self.descriptor)
            _unnamed(self.path).rename(self.path)
            self._named = True
        except OSError as error:
            raise medium_failed(self.path, error) from error
        _make_name_durable(self.path)

    def close(self) -> None:
        """Gives it and its lock up; a file without its name is gone."""
        if self._closed:
            return
        self._closed = True
        if not self._named:
            _remove(_unnamed(self.path))
        # At once: a mapping that somebody still looks at would keep the lock.
        with contextlib.suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)


def _unnamed(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _open_new(path: Path) -> int:
    # What a process that died left is replaced. One that lives has its lock, and is
    # not harmed: `take` on the file it made, or on ours, finds it out.
    try:
        with contextlib.suppress(FileNotFoundError):
            left = os.open(path, _FLAGS)
            with _closing(left):
                take(left, path)
                _remove(path)
        return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise medium_failed(path, error) from error


def _size_of(path: Path, descriptor: int) -> int:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise medium_failed(path, OSError(errno.EINVAL, "it is no ordinary file"))
    if found.st_size == 0 or found.st_size % PAGE:
        raise damaged(path, f"{found.st_size} bytes, no multiple of {PAGE}")
    return found.st_size


def _reserve(path: Path, descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise medium_failed(path, error, size=size) from error


def _fill(path: Path, descriptor: int, size: int) -> None:
    # Room that was never written is cheap to reserve and dear to write for the first
    # time; here it costs nobody's round.
    try:
        for offset in range(0, size, len(_ZEROS)):
            part = memoryview(_ZEROS)[: size - offset]
            if os.pwrite(descriptor, part, offset) != len(part):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
        os.fsync(descriptor)
    except OSError as error:
        raise medium_failed(path, error, size=size) from error


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _make_name_durable(path: Path) -> None:
    # Also of a file that is found: who named it may have been killed before this.
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        directory = os.open(path.parent, flags)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise medium_failed(path, error) from error


def _closing(descriptor: int) -> contextlib.ExitStack:
    undo = contextlib.ExitStack()
    undo.callback(os.close, descriptor)
    return undo
