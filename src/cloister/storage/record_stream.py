"""Where records come from when a data set is sealed: a format, read piece by piece.

A format reads its source in chunks of bounded size, whatever the source's, and every
time from the start. What this module does not do: know any format; `storage.formats`
has one a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from cloister.storage.records import Batch, Schema, SplitName

# They bound the memory that sealing takes, whatever the size of the source.
CHUNK_RECORDS = 1024
CHUNK_BYTES = 16 * 2**20


def chunk_records(record_bytes: int) -> int:
    """Returns how many records of this length make a chunk: one at least.

    Args:
        record_bytes: Length of a record.
    """
    return max(1, min(CHUNK_RECORDS, CHUNK_BYTES // record_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some consecutive records of one split.

    Attributes:
        split: Which split.
        columns: Each field's values by name: (records, *field.shape), of the schema's
            types in native byte order.
    """

    split: SplitName
    columns: Batch

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


class RecordStream(Protocol):
    """The records of a source, in their order."""

    @property
    def format(self) -> str:
        """Name of the source's format; it stands in the manifest."""
        ...

    @property
    def schema(self) -> Schema:
        """The fields; their bounds are those of the format, and no value passes one."""
        ...

    @property
    def total(self) -> int | None:
        """Records of all splits together; None where only reading them would tell."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """Yields all records: those of ``train`` first, then of ``held-out``.

        At most `CHUNK_RECORDS` in each chunk.

        Raises:
            StorageError: If the source cannot be read, or is not in its format; the
                message names the file and the record.
        """
        ...
