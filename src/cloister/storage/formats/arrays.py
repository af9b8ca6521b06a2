"""NumPy arrays: one field a file ``NAME.npy``, the first dimension counts records.

Fields are stored in alphabetical order. With a directory ``train`` and a directory
``held-out`` in the source, each holds the arrays of its split; otherwise they lie in
the source itself. Object arrays are refused: loading one would run its author's code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from typing_extensions import override

from cloister.errors import ConfigError
from cloister.storage.formats.held_out import SourceStream
from cloister.storage.formats.npy_files import NpyFile, open_rows, read_header
from cloister.storage.formats.source_files import check_directory, malformed, missing
from cloister.storage.record_stream import Chunk, chunk_records
from cloister.storage.records import Field, Schema, SplitName

_Columns = Mapping[str, NpyFile]

_EXPECTED = "one file NAME.npy a field, there or in train/ and held-out/"
_SPLITS: tuple[SplitName, ...] = ("train", "held-out")


def open_arrays(source: Path) -> SourceStream:
    """Returns the records of a directory of NumPy arrays.

    Args:
        source: The directory.

    Raises:
        ConfigError: If the directory or its files are missing (``data-missing``), or
            arrays lie both in it and in its ``train`` or ``held-out``
            (``data-ambiguous``).
        StorageError: If a file cannot be read (``data-unreadable``) or is cut off
            (``data-truncated``); if it is no array of numbers, or has not as many
            records as the others of its split, or the splits differ in their fields
            (``data-malformed``).
    """
    check_directory(source, expected=_EXPECTED)
    told = [split for split in _SPLITS if (source / split).is_dir()]
    if told and any(source.glob("*.npy")):
        raise ConfigError(
            f"{source} holds arrays beside {' and '.join(told)}",
            code="data-ambiguous",
            expected=_EXPECTED,
            remedy="Keep the arrays in one place.",
        )
    if not told:
        return _Arrays({"train": _read_split(source)}, tells_splits=False)
    arrays = {split: _read_split(source / split) for split in told}
    schemas = [_schema_of(split) for split in arrays.values()]
    if any(schema != schemas[0] for schema in schemas):
        raise malformed(
            source,
            expected="the same names, types and shapes in train and held-out",
            got=" and ".join(_in_words(schema) for schema in schemas),
        )
    return _Arrays(arrays, tells_splits=True)


def _read_split(directory: Path) -> _Columns:
    # By the names of the fields, which is not the order of the names of the files.
    paths = sorted(directory.glob("*.npy"), key=lambda path: path.stem)
    if not paths:
        raise missing(f"{directory} holds no array", expected=_EXPECTED)
    columns = {path.stem: read_header(path) for path in paths}
    counts = {len(column) for column in columns.values()}
    if len(counts) != 1:
        found = ", ".join(f"{name}: {len(c)}" for name, c in columns.items())
        raise malformed(directory, expected="as many records in each", got=found)
    return columns


def _schema_of(columns: _Columns) -> Schema:
    return Schema(
        fields=tuple(
            Field(name=name, dtype=column.dtype.name, shape=column.shape[1:])
            for name, column in columns.items()
        )
    )


def _in_words(schema: Schema) -> str:
    return ", ".join(f"{f.name} {f.dtype} {f.shape}" for f in schema.fields)


class _Arrays(SourceStream):
    def __init__(
        self, arrays: dict[SplitName, _Columns], *, tells_splits: bool
    ) -> None:
        self._arrays = arrays
        self._tells_splits = tells_splits
        self._schema = _schema_of(next(iter(arrays.values())))

    @property
    @override
    def format(self) -> str:
        return "arrays"

    @property
    @override
    def schema(self) -> Schema:
        return self._schema

    @property
    @override
    def total(self) -> int:
        return sum(_length(columns) for columns in self._arrays.values())

    @property
    @override
    def tells_splits(self) -> bool:
        return self._tells_splits

    @override
    def chunks(self) -> Iterator[Chunk]:
        step = chunk_records(self._schema.record_bytes)
        for split, columns in self._arrays.items():
            with contextlib.ExitStack() as files:
                opened = {
                    name: files.enter_context(open_rows(column))
                    for name, column in columns.items()
                }
                for first in range(0, _length(columns), step):
                    yield Chunk(
                        split=split,
                        columns={
                            name: rows.read(first, first + step)
                            for name, rows in opened.items()
                        },
                    )


def _length(columns: _Columns) -> int:
    return len(next(iter(columns.values())))
