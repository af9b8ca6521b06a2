"""The files of a source: plain or gzip, read piece by piece, whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from io import BufferedIOBase, BufferedReader
from pathlib import Path

from cloister.errors import ConfigError, StorageError

_GZIP_MAGIC = b"\x1f\x8b"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what can go wrong while `path` is read into errors that name it.

    Raises:
        StorageError: If it cannot be read (``data-unreadable``), or is no whole gzip
            file (``data-truncated``).
    """
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StorageError(
            f"{path} is cut off or damaged",
            code="data-truncated",
            expected="a whole gzip file",
            got=str(error),
            remedy="Fetch the file again.",
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot read {path}",
            code="data-unreadable",
            got=error.strerror or "an error",
            remedy="Check the file's permissions and the disk.",
        ) from error


@contextlib.contextmanager
def open_plain(path: Path) -> Iterator[BufferedReader]:
    """Opens a file for reading, as it is.

    Raises:
        StorageError: If it cannot be opened (``data-unreadable``).
    """
    # Not around the block: two files are read at a time, and an error in one would be
    # taken for the other's.
    with reading(path):
        file = path.open("rb")
    with file:
        yield file


@contextlib.contextmanager
def open_unpacked(path: Path) -> Iterator[BufferedIOBase]:
    """Opens a file for reading; a gzip file, known by its first bytes, unpacked.

    For formats that never begin with those bytes themselves.

    Raises:
        StorageError: If it cannot be opened or read (``data-unreadable``).
    """
    with open_plain(path) as file:
        with reading(path):
            start = file.peek(len(_GZIP_MAGIC))
        if not start.startswith(_GZIP_MAGIC):
            yield file
            return
        # Unpacked piece by piece: nothing is ever written to the disk.
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked


def read_exactly(file: BufferedIOBase, size: int, *, path: Path) -> bytes:
    """Returns the next `size` bytes.

    Raises:
        StorageError: If there are fewer, or they are damaged (``data-truncated``); or
            if they cannot be read (``data-unreadable``).
    """
    with reading(path):
        content = file.read(size)
    if len(content) != size:
        raise StorageError(
            f"{path} is cut off",
            code="data-truncated",
            expected=f"{size} bytes more",
            got=f"{len(content)} bytes",
            remedy="Fetch the file again.",
        )
    return content


def expect_end(file: BufferedIOBase, *, path: Path) -> None:
    """Returns if nothing is left to read.

    Raises:
        StorageError: If there is more (``data-malformed``), or the end is damaged
            (``data-truncated``).
    """
    with reading(path):
        left = file.read(1)
    if left:
        raise malformed(path, expected="no bytes after its last record", got="more")


def malformed(path: Path, *, expected: str, got: str) -> StorageError:
    """Returns the error of a file that is not in its format (``data-malformed``)."""
    return StorageError(
        f"{path} is not in its format",
        code="data-malformed",
        expected=expected,
        got=got,
        remedy="Fetch the file again, or name another format.",
    )


def missing(what: str, *, expected: str) -> ConfigError:
    """Returns the error of a source without its files (``data-missing``)."""
    return ConfigError(
        what,
        code="data-missing",
        expected=expected,
        remedy="Correct the path; docs/how-to/data.md says where the files come from.",
    )


def check_directory(source: Path, *, expected: str) -> None:
    """Returns if `source` is a directory.

    Raises:
        ConfigError: If it is none (``data-missing``).
    """
    if not source.is_dir():
        raise missing(f"no data directory {source}", expected=expected)
