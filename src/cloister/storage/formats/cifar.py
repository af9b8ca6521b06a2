"""CIFAR-10's binary layout: one byte of label, then the image in planes R, G, B.

https://www.cs.toronto.edu/~kriz/cifar.html. A directory holds ``data_batch*.bin`` and,
as a rule, ``test_batch*.bin``; records are numbered through the files of a split in
order of their names.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from typing_extensions import override

from cloister.errors import StorageError
from cloister.storage.formats.held_out import SourceStream
from cloister.storage.formats.source_files import (
    check_directory,
    expect_end,
    missing,
    open_plain,
    read_exactly,
    reading,
)
from cloister.storage.raw_files import FILE_PATTERNS
from cloister.storage.record_layout import unpack
from cloister.storage.record_stream import CHUNK_RECORDS, Chunk
from cloister.storage.records import Batch, Field, Schema, SplitName

CIFAR_SCHEMA = Schema(
    fields=(
        Field(name="label", dtype="uint8", below=10),
        Field(name="image", dtype="uint8", shape=(3, 32, 32)),
    )
)

_RECORD_BYTES = CIFAR_SCHEMA.record_bytes
_EXPECTED = "one or more files data_batch*.bin or test_batch*.bin"


def open_cifar(source: Path) -> SourceStream:
    """Returns the records of a CIFAR-10 directory.

    Args:
        source: The directory.

    Raises:
        ConfigError: If the directory or its files are missing (``data-missing``).
        StorageError: If a file cannot be read (``data-unreadable``), or its size is
            not that of whole records (``data-truncated``).
    """
    check_directory(source, expected=_EXPECTED)
    found = {
        split: sorted(source.glob(FILE_PATTERNS[split])) for split in FILE_PATTERNS
    }
    if not any(found.values()):
        raise missing(f"{source} holds no CIFAR-10 file", expected=_EXPECTED)
    return _Cifar(
        {
            split: [(path, _count(path)) for path in paths]
            for split, paths in found.items()
        }
    )


def _count(path: Path) -> int:
    with reading(path):
        size = path.stat().st_size
    count, rest = divmod(size, _RECORD_BYTES)
    if rest:
        raise StorageError(
            f"{path} is cut off, or is no CIFAR-10 file",
            code="data-truncated",
            expected=f"a multiple of {_RECORD_BYTES} bytes",
            got=f"{size} bytes",
            remedy="Fetch the data set again.",
        )
    return count


class _Cifar(SourceStream):
    def __init__(self, files: dict[SplitName, list[tuple[Path, int]]]) -> None:
        self._files = files

    @property
    @override
    def format(self) -> str:
        return "cifar-10"

    @property
    @override
    def schema(self) -> Schema:
        return CIFAR_SCHEMA

    @property
    @override
    def total(self) -> int:
        every = itertools.chain.from_iterable(self._files.values())
        return sum(count for _, count in every)

    @property
    @override
    def tells_splits(self) -> bool:
        return all(self._files.values())

    @override
    def chunks(self) -> Iterator[Chunk]:
        for split, files in self._files.items():
            told: SplitName = split if self.tells_splits else "train"
            for path, count in files:
                for columns in _columns_of(path, count):
                    yield Chunk(split=told, columns=columns)


def _columns_of(path: Path, count: int) -> Iterator[Batch]:
    with open_plain(path) as file:
        for first in range(0, count, CHUNK_RECORDS):
            rows = min(CHUNK_RECORDS, count - first)
            content = read_exactly(file, rows * _RECORD_BYTES, path=path)
            table = np.frombuffer(content, np.uint8).reshape(rows, _RECORD_BYTES)
            yield unpack(table, CIFAR_SCHEMA)
        expect_end(file, path=path)
