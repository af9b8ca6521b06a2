"""A chain of records in a file that one process appends to.

One record is one line and one write. Whoever dies in the middle of it leaves an
incomplete last line; no head was ever told of it, so it is dropped. Anything else that
is wrong with a log refuses it: there is no going on from what somebody changed.

The lock keeps two processes of one host apart by accident. It is the host's lock, and
no protection from the host; a fork is found by its heads (``docs/spec/audit.md``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from typing_extensions import override

from cloister.errors import StorageError
from cloister.storage.audit_chain import FIRST, Link, Signer, next_link, parse_links
from cloister.storage.dsse import LINE_START, MAX_LINE_BYTES, encode_envelope

_CHUNK_BYTES = 2**16

_log = logging.getLogger(__name__)


class AuditFile:
    """An open log; made by `AuditFile.open`. Not for several threads at once."""

    def __init__(self, path: Path, *, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._last: Link | None = None
        self._size = 0
        self._unusable = ""
        self._closed = False
        self.repaired_bytes = 0
        """Size of the incomplete last line that was dropped; 0 for none."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Returns the log at `path`, checked from its first byte on; made if absent.

        Its signatures are not verified: whoever opens it goes through `links`.

        Raises:
            StorageError: If another process has it open, it cannot be used, or it is
                no chain of records; but for an incomplete last line.
        """
        try:
            descriptor = _open_locked(path)
        except OSError as error:
            raise _unwritable(path, error) from error
        log = cls(path, descriptor=descriptor)
        try:
            log._check()
        except OSError as error:
            log.close()
            raise _unwritable(path, error) from error
        except BaseException:
            # Also on Ctrl-C: nobody has this object yet to close it. Raised again.
            log.close()
            raise
        return log

    @property
    def head(self) -> str:
        """SHA-256 of the last record, in hex; `FIRST` where there is none."""
        return FIRST if self._last is None else self._last.head

    @property
    def length(self) -> int:
        """Number of records."""
        return 0 if self._last is None else self._last.seq + 1

    @property
    def links(self) -> Iterator[Link]:
        """All records of this moment, read from the file each time this is asked for.

        A log may be larger than what a node wants to hold. If the file is not what it
        was when it was opened, the iteration ends in `StorageError`: nothing may be
        believed before it has ended well.
        """
        self._require_open()
        return self._read(self._size, head=self.head)

    def append(self, entry: bytes, *, at_ms: int, signer: Signer) -> Link:
        """Returns the record that was written, in its place.

        It is with the kernel when this returns: it outlives the process, and with
        `sync` the machine.

        Args:
            entry: A JSON object.
            at_ms: Unix time in milliseconds; never put before the last record's.
            signer: Who signs.

        Whatever else interrupts it, the log is as it was before, too.

        Raises:
            StorageError: If it cannot be written; then the log is as it was before.
            ValueError: If `entry` is no JSON object; a bug of the caller.
        """
        self._require_open()
        self._require_usable()
        before = self._last, self._size
        link = next_link(self._last, entry=entry, at_ms=at_ms, signer=signer)
        line = encode_envelope(link.envelope) + b"\n"
        # Until the books agree with the file: two interruptions may be one too many.
        self._unusable = "an interruption"
        try:
            _write_once(self._descriptor, line)
            self._last, self._size = link, self._size + len(line)
            self._unusable = ""
        except OSError as error:
            self._take_back(before)
            raise _unwritable(self._path, error) from error
        except BaseException:
            # Whatever interrupts, as Ctrl-C does: two records with one number would be
            # a log that nobody goes on from. Raised again.
            self._take_back(before)
            raise
        return link

    def keep_first(self, length: int) -> int:
        """Drops all records after the first `length`; returns how many bytes they were.

        The file that is open is cut, whatever its name stands for by now.

        Raises:
            StorageError: If the file changed while it was open, or cannot be cut.
        """
        self._require_usable()
        last, size = None, 0
        for link in self.links:
            if link.seq < length:
                last, size = link, size + len(encode_envelope(link.envelope)) + 1
        dropped = self._size - size
        try:
            os.ftruncate(self._descriptor, size)
            os.fsync(self._descriptor)
        except OSError as error:
            self._unusable = error.strerror or "an error"
            raise _unwritable(self._path, error) from error
        self._last, self._size = last, size
        return dropped

    def sync(self) -> None:
        """Returns when all that was appended is on the disk.

        Raises:
            StorageError: If that is not certain. Nothing is appended any more then: a
                kernel may forget what it failed to write, and say so only once.
        """
        self._require_open()
        self._require_usable()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._unusable = error.strerror or "an error"
            raise _unwritable(self._path, error) from error

    def close(self) -> None:
        """Gives the log up; again does nothing."""
        if not self._closed:
            self._closed = True
            # What had to be on the disk was synced.
            with contextlib.suppress(OSError):
                os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @override
    def __repr__(self) -> str:
        return f"AuditFile({str(self._path)!r}, length={self.length})"

    def _check(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if size == 0:
            # So that a log that somebody heard of has a name after a power cut.
            _sync_directory(self._path.parent)
            return
        whole = self._end_of_records(size)
        for link in self._read(whole, head=None):
            self._last = link
        if whole != size:
            os.ftruncate(self._descriptor, whole)
            os.fsync(self._descriptor)
        self.repaired_bytes = size - whole
        self._size = whole

    def _end_of_records(self, size: int) -> int:
        """Returns where an incomplete last line begins; `size` where there is none."""
        start = size
        while start > 0 and size - start <= MAX_LINE_BYTES:
            start = max(0, start - _CHUNK_BYTES)
            chunk = os.pread(self._descriptor, _CHUNK_BYTES, start)
            if (newline := chunk.rfind(b"\n")) >= 0:
                return self._if_unfinished(start + newline + 1, size=size)
        return self._if_unfinished(0, size=size) if start == 0 else size

    def _if_unfinished(self, start: int, *, size: int) -> int:
        """Returns `start` if a record was begun there: no other file is ever cut."""
        begun = os.pread(self._descriptor, len(LINE_START), start)
        # Zeros: a file system that had made room and, at a power cut, no more.
        if LINE_START.startswith(begun) or begun == bytes(len(begun)):
            return start
        return size

    def _read(self, size: int, *, head: str | None) -> Iterator[Link]:
        last = FIRST
        for link in parse_links(_part_of(self._descriptor, size)):
            last = link.head
            yield link
        if head is not None and last != head:
            raise StorageError(
                f"{self._path} changed while it was open",
                code="audit-broken",
                expected=f"{head} as its head",
                got=last,
                remedy="Find out who else writes to it.",
            )

    def _take_back(self, before: tuple[Link | None, int]) -> None:
        """Takes a line away, or a part; the next one starts where this one did."""
        self._last, self._size = before
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            self._unusable = error.strerror or "an error"
        else:
            self._unusable = ""

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("the log is closed")

    def _require_usable(self) -> None:
        if self._unusable:
            raise StorageError(
                f"{self._path} may end in the middle of a record",
                code="audit-unwritable",
                expected="a disk that keeps what it was given",
                got=self._unusable,
                remedy="Start again; what was written is checked then.",
            )


class _Part(io.RawIOBase):
    """The first bytes of a file, read at a place of its own."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._file = descriptor
        self._left = size
        self._at = 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        wanted = min(len(view), self._left)
        piece = os.pread(self._file, wanted, self._at)
        view[: len(piece)] = piece
        self._at += len(piece)
        self._left -= len(piece)
        return len(piece)


def _part_of(descriptor: int, size: int) -> BinaryIO:
    return io.BufferedReader(_Part(descriptor, size), _CHUNK_BYTES)


def _open_locked(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file")
        _lock(descriptor, path)
        undo.pop_all()
    return descriptor


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(
            f"another process writes to {path}",
            code="audit-busy",
            expected="one process at a time",
            remedy="Stop the other one first.",
        ) from error
    except OSError as error:
        # Gramine has no flock unless its manifest asks for it by name, and there it
        # would hold within one enclave only.
        if error.errno != errno.ENOSYS:
            raise
        _log.warning("no file locks here: nothing keeps two writers from %s", path)


def _write_once(descriptor: int, line: bytes) -> None:
    # A disk that fills up takes a part first, and says why only when asked again.
    if os.write(descriptor, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write the log {path}",
        code="audit-unwritable",
        expected="a file that this user can write to, and room on its disk",
        got=error.strerror or "an error",
        remedy="Put the log itself there, no link or directory; or make room.",
    )
