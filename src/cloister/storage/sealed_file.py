"""The file that holds a sealed data set: its two ends, and how it is read.

Form: ``docs/spec/sealed-data.md``. The file is the host's. What this module does not
do: open records, or believe the manifest.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from cloister.errors import ConfigError, StorageError
from cloister.storage.data_manifest import MAX_MANIFEST_BYTES, Manifest
from cloister.storage.record_cipher import TAG_BYTES

MAGIC: Final = b"cloister/data/1\n"
END: Final = b"\ncloister/data/1"
LENGTH_BYTES: Final = 8  # of the manifest, little endian, between it and `END`
_TRAILER_BYTES: Final = LENGTH_BYTES + len(END)


class HeldFile:
    """A file that stays open: by its name another could be given tomorrow.

    It is closed with the last that refers to it, at the latest.

    Args:
        path: The file.

    Raises:
        ConfigError: If there is none (``data-missing``).
        StorageError: If it cannot be opened (``data-unreadable``), or is no ordinary
            file (``data-malformed``).
    """

    __slots__ = ("_handle", "_path")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1
        # Neither a pipe nor a device is waited for, and no terminal becomes ours.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self._handle = os.open(path, flags)
            mode = os.fstat(self._handle).st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise ConfigError(
                f"there is no sealed data set {path}",
                code="data-missing",
                expected="a file that `cloister data seal` wrote",
                remedy="Correct the path.",
            ) from error
        except OSError as error:
            raise self._unreadable(error) from error
        if not stat.S_ISREG(mode):
            self.close()
            raise _not_sealed(path, "no ordinary file")

    def __del__(self) -> None:
        self.close()

    def size(self) -> int:
        """Returns its length now.

        Raises:
            StorageError: If it cannot be asked (``data-unreadable``).
        """
        try:
            return os.fstat(self._handle).st_size
        except OSError as error:
            raise self._unreadable(error) from error

    def read(self, offset: int, count: int) -> bytes:
        """Returns `count` bytes from `offset` on; fewer at the end of the file.

        Raises:
            StorageError: If it cannot be read (``data-unreadable``).
        """
        parts: list[bytes] = []
        try:
            while count > 0:
                part = os.pread(self._handle, count, offset)
                if not part:
                    break
                parts.append(part)
                offset, count = offset + len(part), count - len(part)
        except OSError as error:
            raise self._unreadable(error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Closes it; nothing can be read any more."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def _unreadable(self, error: OSError) -> StorageError:
        return StorageError(
            f"cannot read the sealed data set {self._path}",
            code="data-unreadable",
            expected="a file that this user may read, on a disk that gives back what"
            " lies on it",
            got=error.strerror or "an error",
            remedy="Correct its permissions, or read it from another copy.",
        )


def manifest_line(path: Path, file: HeldFile, size: int) -> bytes:
    """Returns the manifest's line; it may be anybody's.

    Raises:
        StorageError: If the file does not begin and end as a sealed data set does
            (``data-malformed``, ``data-truncated``).
    """
    beginning = file.read(0, len(MAGIC))
    if beginning != MAGIC:
        raise _not_sealed(path, "another beginning")
    trailer = file.read(max(0, size - _TRAILER_BYTES), _TRAILER_BYTES)
    if trailer[LENGTH_BYTES:] != END:
        raise StorageError(
            f"{path} is cut off, or something was added to it",
            code="data-truncated",
            expected="the end of a sealed data set",
            remedy="Copy the sealed data set again.",
        )
    length = int.from_bytes(trailer[:LENGTH_BYTES], "little")
    most = min(MAX_MANIFEST_BYTES, size - _TRAILER_BYTES - len(MAGIC))
    if length > most:
        raise _not_sealed(path, f"a manifest of {length} bytes")
    return file.read(size - _TRAILER_BYTES - length, length)


def check_length(
    path: Path, manifest: Manifest, size: int, *, manifest_bytes: int
) -> None:
    """Checks that a file is as long as its manifest says.

    Args:
        path: The file, for messages.
        manifest: Its manifest.
        size: Its length.
        manifest_bytes: Length of the manifest's line.

    Raises:
        StorageError: If records are missing (``data-truncated``), or there is more
            (``data-surplus``).
    """
    each = manifest.schema.record_bytes + TAG_BYTES
    there = size - len(MAGIC) - manifest_bytes - _TRAILER_BYTES
    wanted = manifest.total * each
    if there == wanted:
        return
    missing = there < wanted
    raise StorageError(
        f"{path}: records are missing"
        if missing
        else f"{path} holds more than its records",
        code="data-truncated" if missing else "data-surplus",
        expected=f"{manifest.total} records of {each} bytes",
        got=f"{there} bytes",
        remedy="Copy the sealed data set again.",
    )


def _not_sealed(path: Path, got: str) -> StorageError:
    return StorageError(
        f"{path} is not a sealed data set",
        code="data-malformed",
        expected="a file that `cloister data seal` wrote",
        got=got,
        remedy="Give the path of a sealed data set.",
    )
