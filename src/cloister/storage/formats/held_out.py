"""Which records of a source are held out, where the source does not say it itself.

The last ones are, so the owner decides by the order of the source. Nothing is drawn at
random here: a random choice would be another one at every sealing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

from typing_extensions import override

from cloister.errors import ConfigError, StorageError
from cloister.storage.record_stream import Chunk, RecordStream
from cloister.storage.records import Schema, SplitName

HeldOut = int | Literal["all"]


class SourceStream(RecordStream, Protocol):
    """The records of a source, with the splits that it tells apart itself."""

    @property
    def tells_splits(self) -> bool:
        """Whether the source has a test set; if not, all its records are ``train``."""
        ...

    def count(self) -> int:
        """Returns how many records there are, reading the source if it must.

        Raises:
            StorageError: If it cannot be read.
        """
        total = self.total
        return sum(len(chunk) for chunk in self.chunks()) if total is None else total


def with_held_out(stream: SourceStream, held_out: HeldOut | None) -> RecordStream:
    """Returns the records of `stream` with some of them held out.

    Args:
        stream: The source.
        held_out: The last so many records; ``"all"`` for every record, also of a
            source with a test set; None to take the splits that the source tells apart.

    Raises:
        ConfigError: If the source has no test set and `held_out` is None
            (``held-out-unsaid``), has one and `held_out` is a number
            (``held-out-given``), or if the number is negative or leaves no record to
            train on (``held-out-too-many``). Where the source does not know how many
            records it has, the latter is raised when they are read.
    """
    if held_out is None:
        if not stream.tells_splits:
            raise ConfigError(
                f"this {stream.format} source does not say which records are held out",
                code="held-out-unsaid",
                expected="how many of its last records to hold out",
                remedy="Say --held-out with a number; a worker evaluates on them.",
            )
        return stream
    if held_out == "all":
        return _AllHeldOut(stream)
    if stream.tells_splits:
        raise ConfigError(
            f"this {stream.format} source has held-out records of its own",
            code="held-out-given",
            expected="no number of records to hold out",
            got=str(held_out),
            remedy="Leave --held-out away, or take the test set out of the source.",
        )
    if stream.total is not None:
        _check_count(held_out, total=stream.total)
    return _LastHeldOut(stream, held_out)


class _Divided(RecordStream):
    """A stream whose records go to other splits than its own."""

    def __init__(self, stream: SourceStream) -> None:
        self._stream = stream

    @property
    @override
    def format(self) -> str:
        return self._stream.format

    @property
    @override
    def schema(self) -> Schema:
        return self._stream.schema

    @property
    @override
    def total(self) -> int | None:
        return self._stream.total


class _AllHeldOut(_Divided):
    """Every record is held out: a set to evaluate or to predict on."""

    @override
    def chunks(self) -> Iterator[Chunk]:
        for chunk in self._stream.chunks():
            yield Chunk(split="held-out", columns=chunk.columns)


class _LastHeldOut(_Divided):
    """The last records are held out."""

    def __init__(self, stream: SourceStream, count: int) -> None:
        super().__init__(stream)
        self._count = count

    @override
    def chunks(self) -> Iterator[Chunk]:
        # Counting reads a source twice that does not know its length; keeping the last
        # records back instead would hold them all in memory.
        total = self._stream.count()
        _check_count(self._count, total=total)
        train, at = total - self._count, 0
        for chunk in self._stream.chunks():
            # How many of this chunk's records still are to train on.
            border = min(max(train - at, 0), len(chunk))
            if border:
                yield _part(chunk, slice(0, border), "train")
            if border < len(chunk):
                yield _part(chunk, slice(border, None), "held-out")
            at += len(chunk)
        if at != total:
            raise StorageError(
                "the source changed while it was read",
                code="data-changed",
                expected=f"{total} records",
                got=str(at),
                remedy="Let no other program write it, and try again.",
            )


def _part(chunk: Chunk, rows: slice, split: SplitName) -> Chunk:
    columns = {name: column[rows] for name, column in chunk.columns.items()}
    return Chunk(split=split, columns=columns)


def _check_count(held_out: int, *, total: int) -> None:
    if not 0 <= held_out < max(total, 1):
        raise ConfigError(
            "no record would be left to train on"
            if held_out > 0
            else "the number of records to hold out is negative",
            code="held-out-too-many" if held_out > 0 else "held-out-negative",
            expected=f"0 to {max(total - 1, 0)} held-out records",
            got=str(held_out),
            remedy="Say a smaller number, or --held-out all to train on none.",
        )
