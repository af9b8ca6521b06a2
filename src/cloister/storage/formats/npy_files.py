"""One ``.npy`` file of numbers: its header, and its rows piece by piece.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1 to 3.
The header is a Python literal there. Here it is matched against the one form that an
array of plain numbers has, and nothing is evaluated: on a damaged one NumPy's reader
ends in half a dozen kinds of errors, and they quote it. A damaged length makes records
a part of the header, so no bytes that were read stand in a message.

Files are read and never mapped: a mapped file that somebody shortens kills the process.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloister.errors import StorageError
from cloister.storage.formats.source_files import (
    malformed,
    open_plain,
    read_exactly,
    reading,
)
from cloister.storage.record_layout import MAX_DIMENSIONS

_MAGIC = b"\x93NUMPY"
# By the version: how many bytes say how long the header is.
_LENGTH_BYTES = {b"\x01\0": 2, b"\x02\0": 4, b"\x03\0": 4}
# A header of one type and a shape takes 128 bytes; structured types alone take more.
_MAX_HEADER_BYTES = 64 * 1024
# S stands for space, N for a number. Both are bounded, so that no header takes long.
_SPACE = rb"[ \t\n]{0,8}"
_SIZE = rb"[0-9]{1,19}L?"  # Python 2 wrote an L
_HEADER = re.compile(
    rb"""\{(?:(?<=[{,])S(?:
        ['"]descr['"]S:S['"](?P<descr>[<>=|]?[A-Za-z][0-9]{0,6})['"]
      | ['"]fortran_order['"]S:S(?P<fortran>True|False)
      | ['"]shape['"]S:S\((?P<shape>(?:(?:N,[ ]?){1,64}(?:N)?)?)\)
    )S,?){3}S\}""".replace(b"S", _SPACE).replace(b"N", _SIZE),
    re.VERBOSE,
)
_NUMBERS = re.compile(rb"[<>=|]?(?:[iu][1248]|f[248])")
_OTHERS = {
    b"b": "truth values",
    b"c": "complex numbers",
    b"S": "text",
    b"U": "text",
    b"M": "dates",
    b"m": "spans of time",
    b"O": "Python objects",
}
_EXPECTED = "a NumPy array of plain integers of 8 to 64 bits or floats of 16 to 64"


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyFile:
    """What the header of a file says, and its size bears out.

    Attributes:
        path: Where it lies.
        dtype: The type of a value, in the file's order of bytes.
        shape: All dimensions; the first counts the rows.
        fortran_order: Whether the first dimension varies fastest, not the last.
        offset: Where the values begin.
    """

    path: Path
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size_bytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpyRows:
    """The rows of a file that is open."""

    def __init__(self, npy: NpyFile, file: BufferedReader) -> None:
        self._npy = npy
        self._file = file

    def read(self, first: int, end: int) -> NDArray[np.generic]:
        """Returns rows in the machine's order of bytes, in memory of their own.

        Raises:
            StorageError: If the file has become shorter (``data-changed``), or cannot
                be read (``data-unreadable``).
        """
        npy, of_row = self._npy, self._npy.shape[1:]
        rows, width = min(end, len(npy)) - first, math.prod(of_row)
        if npy.fortran_order:
            # The file holds each column whole, one after the other.
            starts = range(first, first + width * len(npy), len(npy))
            values = self._read_runs(starts, rows).reshape(*reversed(of_row), rows).T
        else:
            starts = range(first * width, first * width + 1)
            values = self._read_runs(starts, rows * width).reshape(rows, *of_row)
        native: NDArray[np.generic] = np.ascontiguousarray(
            values, npy.dtype.newbyteorder("=")
        )
        return native

    def _read_runs(self, starts: range, length: int) -> NDArray[np.generic]:
        """Returns `length` values from each of these places: (starts, length)."""
        item = self._npy.dtype.itemsize
        runs = np.empty((len(starts), length * item), np.uint8)
        for run, start in zip(runs, starts, strict=True):
            self._read_into(run, self._npy.offset + start * item)
        return runs.view(self._npy.dtype)

    def _read_into(self, place: NDArray[np.uint8], at: int) -> None:
        with reading(self._npy.path):
            self._file.seek(at)
            count = self._file.readinto(place.data)
        if count != len(place):
            raise _changed(self._npy.path)


def read_header(path: Path) -> NpyFile:
    """Returns what the header of a file says.

    1. The file begins as one of version 1, 2 or 3.
    2. Its header has the form that an array of one plain type has.
    3. The type is one of integers of 8 to 64 bits or floats of 16 to 64.
    4. It has rows, and a row has values, in at most `MAX_DIMENSIONS` dimensions.
    5. The file holds the array's values and nothing else.

    Raises:
        StorageError: If it cannot be read (``data-unreadable``), is cut off
            (``data-truncated``), or is no such array (``data-malformed``).
    """
    with open_plain(path) as file:
        return _read_header(file, path)


@contextlib.contextmanager
def open_rows(npy: NpyFile) -> Iterator[NpyRows]:
    """Opens a file to read its rows.

    Raises:
        StorageError: If it is not the one any more whose header was read
            (``data-changed``, or what `read_header` says).
    """
    with open_plain(npy.path) as file:
        if _read_header(file, npy.path) != npy:
            raise _changed(npy.path)
        yield NpyRows(npy, file)


def _read_header(file: BufferedReader, path: Path) -> NpyFile:
    # Step 1
    start = read_exactly(file, len(_MAGIC) + 2, path=path)
    length_bytes = _LENGTH_BYTES.get(start[len(_MAGIC) :])
    if not start.startswith(_MAGIC) or length_bytes is None:
        raise malformed(path, expected=_EXPECTED, got="another first line")
    length = int.from_bytes(read_exactly(file, length_bytes, path=path), "little")
    if length > _MAX_HEADER_BYTES:
        raise malformed(
            path, expected=f"a header of {_MAX_HEADER_BYTES} bytes at most", got="more"
        )
    # Step 2
    header = _HEADER.fullmatch(read_exactly(file, length, path=path).strip(b" \n"))
    if header is None or None in header.groups():
        raise malformed(path, expected=_EXPECTED, got="a header of another form")
    # Step 3
    if not _NUMBERS.fullmatch(header["descr"]):
        kind = header["descr"].lstrip(b"<>=|")[:1]
        got = _OTHERS.get(kind, "values of another type")
        raise malformed(path, expected=_EXPECTED, got=got)
    npy = NpyFile(
        path=path,
        dtype=np.dtype(header["descr"].decode()),
        shape=_checked_shape(header["shape"], path),
        fortran_order=header["fortran"] == b"True",
        offset=len(start) + length_bytes + length,
    )
    # Step 5
    with reading(path):
        size = os.fstat(file.fileno()).st_size
    _check_size(npy, size)
    return npy


def _checked_shape(text: bytes, path: Path) -> tuple[int, ...]:
    # Step 4
    shape = tuple(map(int, re.findall(rb"[0-9]+", text)))
    if not 1 <= len(shape) <= MAX_DIMENSIONS + 1:
        raise malformed(
            path,
            expected=f"rows of 0 to {MAX_DIMENSIONS} dimensions, one a record",
            got="more" if shape else "a single value",
        )
    if not all(shape):
        raise malformed(path, expected="at least one record and value", got="none")
    return shape


def _check_size(npy: NpyFile, size: int) -> None:
    if size < npy.offset + npy.size_bytes:
        raise StorageError(
            f"{npy.path} is cut off",
            code="data-truncated",
            expected="all values of the shape that its header says",
            got="fewer bytes",
            remedy="Fetch the file again.",
        )
    if size > npy.offset + npy.size_bytes:
        raise malformed(npy.path, expected="no bytes after the array", got="more")


def _changed(path: Path) -> StorageError:
    return StorageError(
        f"{path} changed while it was read",
        code="data-changed",
        expected="the array that it was at first",
        got="another, or a shorter one",
        remedy="Let no other program write it, and try again.",
    )
