"""Records of a sealed data set, opened one by one (``docs/spec/sealed-data.md``)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag
from numpy.typing import NDArray
from typing_extensions import override

from cloister.errors import StorageError
from cloister.storage.record_cipher import TAG_BYTES, RecordCipher
from cloister.storage.record_layout import outside_bound, unpack
from cloister.storage.records import Batch, Records, Schema, SplitName
from cloister.storage.sealed_file import HeldFile

# Neighbours that are read in one call; more would only move memory.
_RUN_RECORDS: Final = 64
_RUN_BYTES: Final = 2**20


class SealedRecords(Records):
    """The records of one split; for any thread."""

    __slots__ = (
        "_bounds",
        "_cipher",
        "_count",
        "_file",
        "_path",
        "_run",
        "_schema",
        "_split",
        "_start",
    )

    def __init__(  # noqa: PLR0913 - where they lie, what they are, how they open
        self,
        path: Path,
        file: HeldFile,
        split: SplitName,
        *,
        start: int,
        count: int,
        schema: Schema,
        cipher: RecordCipher,
    ) -> None:
        self._path = path
        self._file = file
        self._split: SplitName = split
        self._start = start
        self._count = count
        self._schema = schema
        self._cipher = cipher
        self._bounds = _bounds_to_check(schema)
        self._run = min(_RUN_RECORDS, max(1, _RUN_BYTES // schema.record_bytes))

    @override
    def __len__(self) -> int:
        return self._count

    @override
    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Returns the records at `indices`, decrypted, each field stacked.

        Raises:
            IndexError: If there is no such record; a bug of the caller.
            StorageError: If a record is not what was sealed in its place
                (``data-damaged``), is missing (``data-truncated``), or holds a value
                that the manifest or the task rules out (``data-value-out-of-range``).
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < self._count:
            raise IndexError(f"the {self._split} split has {self._count} records")
        table = np.empty((len(indices), self._schema.record_bytes), np.uint8)
        at = 0
        for first, count in _runs(indices, most=self._run):
            self._open(first, table[at : at + count])
            at += count
        # Aligned and contiguous, as frameworks want them.
        columns = unpack(table, self._schema)
        for name, below in self._bounds:
            self._check_bound(name, columns[name], below, indices)
        return {
            field.name: np.require(
                columns[field.name], np.dtype(field.dtype), ("C", "A", "W")
            )
            for field in self._schema.fields
        }

    def _open(self, first: int, into: NDArray[np.uint8]) -> None:
        """Decrypts consecutive records into the rows of `into`."""
        size = self._schema.record_bytes + TAG_BYTES
        sealed = memoryview(
            self._file.read(self._start + first * size, len(into) * size)
        )
        if len(sealed) != len(into) * size:
            raise StorageError(
                f"{self._path}: {self._split} records are missing",
                code="data-truncated",
                expected=f"{len(into)} records from {first} on",
                got=f"{len(sealed)} bytes",
                remedy="Let no other program write the data during training.",
            )
        for row in range(len(into)):
            try:
                self._cipher.open_into(
                    sealed[row * size : (row + 1) * size],
                    into[row].data,
                    split=self._split,
                    index=first + row,
                )
            except InvalidTag:
                raise StorageError(
                    f"{self._path}: {self._split} record {first + row} was altered, or"
                    " is not in its place",
                    code="data-damaged",
                    expected="the record that its owner sealed there",
                    remedy="Copy the sealed data set again.",
                ) from None

    def _check_bound(
        self,
        name: str,
        column: NDArray[np.generic],
        below: int,
        indices: NDArray[np.int64],
    ) -> None:
        """Checks what the owner signed: it is data, and may be anything."""
        outside = outside_bound(column, below)
        if not outside.any():
            return
        row = int(np.flatnonzero(outside.reshape(len(column), -1).any(axis=1))[0])
        raise StorageError(
            f"{self._path}: {self._split} record {int(indices[row])} has a {name} out"
            " of range",
            code="data-value-out-of-range",
            expected=f"0 to {below - 1}",
            remedy="Have the data's owner correct it, or the task its schema.",
        )


def _bounds_to_check(schema: Schema) -> list[tuple[str, int]]:
    """Returns the bounds that a field's type does not keep by itself."""
    return [
        (f.name, f.below)
        for f in schema.fields
        if f.below is not None
        and (f.dtype.startswith("int") or f.below <= np.iinfo(f.dtype).max)
    ]


def _runs(indices: NDArray[np.int64], *, most: int) -> list[tuple[int, int]]:
    """Returns (first, count) of consecutive indices, at most `most` each."""
    runs: list[tuple[int, int]] = []
    for index in indices.tolist():
        if runs:
            first, count = runs[-1]
            if index == first + count and count < most:
                runs[-1] = (first, count + 1)
                continue
        runs.append((index, 1))
    return runs
