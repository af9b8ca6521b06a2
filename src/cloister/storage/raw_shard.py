"""One party's data in the clear: fixed-size records in CIFAR-10's binary layout.

A directory holds files ``data_batch*.bin`` (split "train") and ``test_batch*.bin``
(split "held-out"). A record is the schema's fields back to back; for CIFAR-10 one byte
of label and 3072 bytes of image, in planes R, G, B
(https://www.cs.toronto.edu/~kriz/cifar.html).

Each file is read once, into memory, and what is hashed there is what is used: whoever
swaps a file later changes nothing.

What this module does not do: protect the data at
rest. That is the sealed data set's part.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from cloister.errors import StorageError
from cloister.storage.raw_files import FILE_PATTERNS, SplitBytes, digest, read_splits
from cloister.storage.record_layout import check_schema, outside_bound, unpack
from cloister.storage.records import (
    Batch,
    DataSource,
    Field,
    Records,
    Schema,
    SplitName,
)


class RawRecords(Records):
    """The records of one split, held in memory.

    Args:
        columns: Each field's values by name: (records, *field.shape).
    """

    __slots__ = ("_columns", "_count")

    def __init__(self, columns: Batch) -> None:
        self._columns = columns
        self._count = len(next(iter(columns.values())))

    @override
    def __len__(self) -> int:
        return self._count

    @override
    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Returns copies of the records at `indices`, each field stacked."""
        return {name: column[indices] for name, column in self._columns.items()}


class RawShard(DataSource):
    """One party's data set, held in memory.

    Attributes:
        digest: ``sha256:<hex>`` over name, length and content of every file, in order;
            what a plan's ``data`` pins.
    """

    __slots__ = ("_splits", "digest")

    def __init__(self, splits: dict[SplitName, RawRecords], digest: str) -> None:
        self._splits = splits
        self.digest = digest

    @override
    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {len(r)}" for name, r in self._splits.items())
        return f"RawShard({sizes}, {self.digest})"

    @override
    def split(self, name: SplitName) -> RawRecords:
        """Returns the records of one split."""
        return self._splits[name]


def open_raw_shard(directory: Path, schema: Schema) -> RawShard:
    """Returns the data set in `directory`, read whole and checked against `schema`.

    Args:
        directory: Holds ``data_batch*.bin`` and ``test_batch*.bin``; within a split,
            records are numbered through the files in order of their names.
        schema: The fields of one record.

    Raises:
        ConfigError: If the directory or the files of a split are missing, or the
            schema cannot describe stored records.
        StorageError: If a file cannot be read, is cut off, or holds an integer at or
            above its field's bound; or if a split has no records.
    """
    check_schema(schema)
    splits = read_splits(directory)
    tables = {name: _records(directory, name, splits[name], schema) for name in splits}
    return RawShard(tables, digest(splits))


def digest_raw_shard(directory: Path) -> str:
    """Returns the digest `RawShard.digest` would have, for a plan to pin.

    Raises:
        ConfigError: If the directory or the files of a split are missing.
        StorageError: If a file cannot be read.
    """
    return digest(read_splits(directory))


def _records(
    directory: Path, split: SplitName, content: SplitBytes, schema: Schema
) -> RawRecords:
    record_bytes = schema.record_bytes
    for name, size in zip(content.names, content.sizes, strict=True):
        if size % record_bytes:
            raise StorageError(
                f"{directory / name} is cut off, or holds records of another size",
                code="data-truncated",
                expected=f"a multiple of {record_bytes} bytes",
                got=f"{size} bytes",
                remedy="Copy the file again, or correct the task's schema.",
            )
    if not content.data.size:
        raise StorageError(
            f"the {split} split in {directory} has no records",
            code="data-empty",
            expected=f"at least {record_bytes} bytes in {FILE_PATTERNS[split]}",
            got="0 bytes",
            remedy="Give the party some data, or leave it out of the plan.",
        )
    columns = unpack(content.data.reshape(-1, record_bytes), schema)
    for field in schema.fields:
        _check_range(directory, content, field, columns[field.name])
    return RawRecords(columns)


def _check_range(
    directory: Path, content: SplitBytes, field: Field, column: NDArray[np.generic]
) -> None:
    if field.below is None:
        return
    outside = outside_bound(column, field.below).reshape(len(column), -1)
    bad = np.flatnonzero(outside.any(axis=1))
    if not bad.size:
        return
    row = int(bad[0])
    value = column[row].reshape(-1)[outside[row]][0]
    record_bytes = content.data.size // len(column)
    ends = np.cumsum([size // record_bytes for size in content.sizes])
    file = int(np.searchsorted(ends, row, side="right"))
    first = int(ends[file - 1]) if file else 0
    raise StorageError(
        f"{directory / content.names[file]}: record {row - first} "
        f"has a {field.name} out of range",
        code="data-label-out-of-range",
        expected=f"0 to {field.below - 1}",
        got=str(value),
        remedy="Correct the record, or the bound in the task's schema.",
    )
