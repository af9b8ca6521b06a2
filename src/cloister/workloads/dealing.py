"""Deals one data set out to parties, in turn: for a demonstration and for trials.

In earnest every party has its own data already. Every record goes to exactly one party.
Nothing is written: what a party gets is a stream, read from the source piece by piece.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cloister.errors import ConfigError
from cloister.storage.record_stream import Chunk, RecordStream
from cloister.storage.records import Schema, SplitName


@dataclass(frozen=True, slots=True, kw_only=True)
class DealtStream:
    """One party's records: of each split every so many-th, counted from its place.

    Attributes:
        whole: All records.
        place: The party's, from 0.
        parties: How many there are.
    """

    whole: RecordStream
    place: int
    parties: int

    @property
    def format(self) -> str:
        """The source's format."""
        return self.whole.format

    @property
    def schema(self) -> Schema:
        """The source's fields."""
        return self.whole.schema

    @property
    def total(self) -> int | None:
        """How many these are follows from the splits' lengths, which nobody knows."""
        return None

    def chunks(self) -> Iterator[Chunk]:
        """Yields the party's records.

        Raises:
            StorageError: If the source cannot be read.
        """
        seen: Counter[SplitName] = Counter()
        for chunk in self.whole.chunks():
            start = (self.place - seen[chunk.split]) % self.parties
            seen[chunk.split] += len(chunk)
            if start < len(chunk):
                yield Chunk(
                    split=chunk.split,
                    columns={
                        name: column[start :: self.parties]
                        for name, column in chunk.columns.items()
                    },
                )


def deal_in_turn(whole: RecordStream, parties: int) -> tuple[DealtStream, ...]:
    """Returns each party's records: number i of a split goes to party i mod `parties`.

    Raises:
        ConfigError: If there is no party.
    """
    if parties < 1:
        raise ConfigError(
            "the data has nobody to go to",
            code="parties-missing",
            expected="at least one party",
            got=str(parties),
        )
    return tuple(
        DealtStream(whole=whole, place=place, parties=parties)
        for place in range(parties)
    )
