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

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from cloister.errors import ConfigError, StorageError
from cloister.storage.records import (
    Batch,
    DataSource,
    Field,
    Records,
    Schema,
    SplitName,
)

FILE_PATTERNS: dict[SplitName, str] = {
    "train": "data_batch*.bin",
    "held-out": "test_batch*.bin",
}
_DIGEST_LABEL = b"cloister raw shard, version 1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class _SplitBytes:
    """The files of one split, end to end in one buffer."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    data: NDArray[np.uint8]


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
    _check_schema(schema)
    splits = _read_splits(directory)
    tables = {name: _records(directory, name, splits[name], schema) for name in splits}
    return RawShard(tables, _digest(splits))


def digest_raw_shard(directory: Path) -> str:
    """Returns the digest `RawShard.digest` would have, for a plan to pin.

    Raises:
        ConfigError: If the directory or the files of a split are missing.
        StorageError: If a file cannot be read.
    """
    return _digest(_read_splits(directory))


def _read_splits(directory: Path) -> dict[SplitName, _SplitBytes]:
    if not directory.is_dir():
        raise ConfigError(
            f"no data directory {directory}",
            code="data-missing",
            expected="a directory with data_batch*.bin and test_batch*.bin",
            remedy="Correct the data path in the site file.",
        )
    return {
        name: _read_split(directory, pattern) for name, pattern in FILE_PATTERNS.items()
    }


def _read_split(directory: Path, pattern: str) -> _SplitBytes:
    paths = sorted(directory.glob(pattern))
    if not paths:
        raise ConfigError(
            f"{directory} holds no file {pattern}",
            code="data-missing",
            expected=f"one or more files {pattern} in CIFAR-10's binary layout",
            remedy="Put the files there, or correct the data path in the site file.",
        )
    try:
        return _read_files(paths)
    except OSError as error:
        raise StorageError(
            f"cannot read the data in {directory}: {error.strerror}",
            code="data-unreadable",
            remedy="Check the files' permissions and the disk.",
        ) from error


def _read_files(paths: Sequence[Path]) -> _SplitBytes:
    sizes = tuple(path.stat().st_size for path in paths)
    # One buffer for the split: joining arrays afterwards would hold it all twice.
    data = np.empty(sum(sizes), np.uint8)
    at = 0
    for path, size in zip(paths, sizes, strict=True):
        with path.open("rb") as file:
            got = file.readinto(data[at : at + size].data)
        if got != size:
            raise StorageError(
                f"{path} shrank while it was read",
                code="data-truncated",
                expected=f"{size} bytes",
                got=f"{got} bytes",
                remedy="Let no other program write the data during training.",
            )
        at += size
    return _SplitBytes(names=tuple(path.name for path in paths), sizes=sizes, data=data)


def _records(
    directory: Path, split: SplitName, content: _SplitBytes, schema: Schema
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
    columns = _columns(content.data.reshape(-1, record_bytes), schema)
    for field in schema.fields:
        _check_range(directory, content, field, columns[field.name])
    return RawRecords(columns)


def _columns(table: NDArray[np.uint8], schema: Schema) -> Batch:
    columns: Batch = {}
    at = 0
    for field in schema.fields:
        # The bytes of one field in every row, seen as its type: nothing is copied.
        column = table[:, at : at + field.size_bytes].view(_dtype(field))
        columns[field.name] = column.reshape(len(table), *field.shape)
        at += field.size_bytes
    return columns


def _dtype(field: Field) -> np.dtype[np.generic]:
    return np.dtype(field.dtype).newbyteorder("<")


def _check_range(
    directory: Path, content: _SplitBytes, field: Field, column: NDArray[np.generic]
) -> None:
    if field.below is None:
        return
    within = np.greater_equal(column, 0) & np.less(column, field.below)
    outside = ~within.reshape(len(column), -1)
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


def _check_schema(schema: Schema) -> None:
    """Refuses a schema that no stored record can follow."""
    names = [field.name for field in schema.fields]
    if len(set(names)) != len(names):
        raise _schema_error("field names repeat", got=", ".join(names))
    for field in schema.fields:
        try:
            kind = np.dtype(field.dtype).kind
        except TypeError as error:
            raise _schema_error(f"field {field.name}", got=field.dtype) from error
        if kind not in "iuf":
            raise _schema_error(f"field {field.name}", got=field.dtype)
        if field.size_bytes < 1:
            raise _schema_error(f"field {field.name} is empty", got=str(field.shape))
    if not schema.fields:
        raise _schema_error("no fields", got="none")


def _schema_error(what: str, *, got: str) -> ConfigError:
    return ConfigError(
        f"the task's schema cannot describe stored records: {what}",
        code="schema-invalid",
        expected="fields of distinct names and integer or floating-point types",
        got=got,
        remedy="Correct schema() in the task.",
    )


def _digest(splits: Mapping[SplitName, _SplitBytes]) -> str:
    # Lengths stand before names and contents, so no two shards hash the same bytes.
    digest = hashlib.sha256(_DIGEST_LABEL)
    for split in FILE_PATTERNS:
        content, at = splits[split], 0
        for name, size in zip(content.names, content.sizes, strict=True):
            encoded = name.encode("utf-8", "surrogateescape")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
            digest.update(size.to_bytes(8, "little"))
            digest.update(content.data[at : at + size].data)
            at += size
    return f"sha256:{digest.hexdigest()}"
