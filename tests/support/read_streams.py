"""Reads a source's records whole, and checks what every stream promises."""

from __future__ import annotations

import numpy as np

from cloister.storage.record_stream import CHUNK_RECORDS, RecordStream
from cloister.storage.records import Batch, SplitName


def read_stream(stream: RecordStream) -> dict[SplitName, Batch]:
    """Returns the records by split; a split without records is left out."""
    parts: dict[SplitName, list[Batch]] = {}
    for chunk in stream.chunks():
        assert 0 < len(chunk) <= CHUNK_RECORDS
        assert chunk.split == "train" or "train" not in list(parts)[1:]
        assert list(chunk.columns) == [field.name for field in stream.schema.fields]
        for field in stream.schema.fields:
            column = chunk.columns[field.name]
            assert column.shape == (len(chunk), *field.shape)
            # Equal types have equal orders of bytes.
            assert column.dtype == np.dtype(field.dtype)
        parts.setdefault(chunk.split, []).append(chunk.columns)
    return {
        split: {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
        for split, columns in parts.items()
    }


def counts(stream: RecordStream) -> dict[SplitName, int]:
    """Returns how many records each split has."""
    read = read_stream(stream)
    return {split: len(next(iter(columns.values()))) for split, columns in read.items()}
