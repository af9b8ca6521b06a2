"""Criteo's display advertising data: 40 tab-separated columns, no header.

A label of 0 or 1, 13 integers and 26 categories, each a hash of eight hex digits; any
but the label may be empty. An empty one is stored as 0, and what it was is in the field
``present``: a count of 0 is not the same as none.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from typing_extensions import override

from cloister.storage.formats.held_out import SourceStream
from cloister.storage.formats.source_files import (
    malformed,
    missing,
    open_unpacked,
    reading,
)
from cloister.storage.record_stream import CHUNK_RECORDS, Chunk
from cloister.storage.records import Batch, Field, Schema

INTEGERS = 13
CATEGORIES = 26
CRITEO_SCHEMA = Schema(
    fields=(
        Field(name="label", dtype="uint8", below=2),
        Field(name="integers", dtype="int32", shape=(INTEGERS,)),
        Field(name="categories", dtype="uint32", shape=(CATEGORIES,)),
        Field(name="present", dtype="uint8", shape=(INTEGERS + CATEGORIES,), below=2),
    )
)

_COLUMNS = 1 + INTEGERS + CATEGORIES
# The longest line that can be right has 381 bytes.
_MAX_LINE_BYTES = 1024
_LABEL = rb"[01]"
_INTEGER = rb"(?:-?[0-9]{1,10})?"
_CATEGORY = rb"(?:[0-9A-Fa-f]{8})?"
_PATTERNS = [_LABEL, *[_INTEGER] * INTEGERS, *[_CATEGORY] * CATEGORIES]
_LINE = re.compile(rb"\t".join(_PATTERNS))
_EXPECTED = "a label, 13 integers and 26 categories between tabs"


def open_criteo(source: Path) -> SourceStream:
    """Returns the records of a file of the Criteo data, for example ``train.txt``.

    Args:
        source: The file, plain or gzip.

    Raises:
        ConfigError: If there is no such file (``data-missing``).
    """
    if not source.is_file():
        raise missing(f"no data file {source}", expected="a file such as train.txt")
    return _Criteo(source)


class _Criteo(SourceStream):
    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    @override
    def format(self) -> str:
        return "criteo"

    @property
    @override
    def schema(self) -> Schema:
        return CRITEO_SCHEMA

    @property
    @override
    def total(self) -> None:
        """None: lines differ in length, so only reading them tells their number."""

    @property
    @override
    def tells_splits(self) -> bool:
        return False

    @override
    def count(self) -> int:
        # Lines are counted faster than they are parsed.
        return sum(len(lines) for _, lines in self._lines())

    @override
    def chunks(self) -> Iterator[Chunk]:
        for first, lines in self._lines():
            yield Chunk(split="train", columns=_parse(lines, self._path, first=first))

    def _lines(self) -> Iterator[tuple[int, list[bytes]]]:
        """Yields some lines at a time, and how many came before them."""
        first, lines = 0, list[bytes]()
        with open_unpacked(self._path) as file, reading(self._path):
            while line := file.readline(_MAX_LINE_BYTES):
                # A file of another kind may have no lines at all.
                if len(line) == _MAX_LINE_BYTES:
                    number = first + len(lines) + 1
                    raise malformed(
                        self._path, expected=_EXPECTED, got=f"a longer line {number}"
                    )
                lines.append(line.removesuffix(b"\n").removesuffix(b"\r"))
                if len(lines) == CHUNK_RECORDS:
                    yield first, lines
                    first, lines = first + len(lines), []
            if lines:
                yield first, lines


def _parse(lines: list[bytes], path: Path, *, first: int) -> Batch:
    for number, line in enumerate(lines, start=first + 1):
        if _LINE.fullmatch(line) is None:
            raise malformed(path, expected=_EXPECTED, got=_fault(line, number))
    values = b"\t".join(lines).split(b"\t")
    present = np.array([value != b"" for value in values], np.uint8)
    table = np.empty((len(lines), _COLUMNS), object)
    table.reshape(-1)[:] = values
    integers = [int(value or b"0") for value in table[:, 1 : 1 + INTEGERS].flat]
    wide = np.array(integers, np.int64).reshape(len(lines), INTEGERS)
    narrow = wide.astype(np.int32)
    outside = np.flatnonzero((wide != narrow).any(axis=1))
    if outside.size:
        number = first + 1 + int(outside[0])
        raise malformed(
            path, expected="integers of 32 bits", got=f"more in line {number}"
        )
    digits = b"".join(value or b"0" * 8 for value in table[:, 1 + INTEGERS :].flat)
    categories = np.frombuffer(binascii.unhexlify(digits), ">u4").astype(np.uint32)
    return {
        "label": table[:, 0].astype(np.uint8),
        "integers": narrow,
        "categories": categories.reshape(len(lines), CATEGORIES),
        "present": present.reshape(len(lines), _COLUMNS)[:, 1:],
    }


def _fault(line: bytes, number: int) -> str:
    """Returns what is wrong with a line, without a value of it."""
    values = line.split(b"\t")
    if len(values) != _COLUMNS:
        return f"{len(values)} columns in line {number}"
    for column, (value, pattern) in enumerate(zip(values, _PATTERNS, strict=True), 1):
        if re.fullmatch(pattern, value) is None:
            return f"column {column} of line {number}"
    raise RuntimeError("a line is refused for its columns")
