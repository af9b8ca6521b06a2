"""A party's data as one has it at hand in Python, as a stream of records to seal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from cloister.cli.data_sealing import data_key
from cloister.cli.places import read_custodian_place
from cloister.errors import ConfigError
from cloister.storage.formats import open_format
from cloister.storage.record_layout import check_schema
from cloister.storage.record_stream import Chunk, RecordStream, chunk_records
from cloister.storage.records import Batch, DataSource, Field, Schema, SplitName
from cloister.storage.sealed_data import read_sealed_data

Arrays = Mapping[str, NDArray[np.generic]]
# Records of any format; a directory that one of the formats reads; arrays by field,
# one row a record; or such arrays by split. Whose values are mappings is by split,
# whatever the names: a field may be called `train`, too.
PartyData = RecordStream | Path | str | Arrays | Mapping[str, Arrays]

_SPLITS: tuple[SplitName, ...] = get_args(SplitName)
# By what lies in it, a directory is of one of these formats.
_PATTERNS = {
    "cifar-10": "data_batch*.bin",
    "mnist": "*-images-idx3-ubyte*",
    "arrays": "**/*.npy",
}


def as_stream(data: PartyData, schema: Schema, *, held_out: float) -> RecordStream:
    """Returns a party's records.

    Args:
        data: What the user has.
        schema: The task's; it gives arrays their order.
        held_out: Which share of arrays that name no split is held out, the last ones.

    Raises:
        ConfigError: If the data is of no kind that is known here, or not the task's.
        StorageError: If files cannot be read.
    """
    if isinstance(data, str | Path):
        return _directory(Path(data), held_out=held_out)
    if isinstance(data, Mapping):
        return _arrays(data, schema, held_out=held_out)
    return data


def open_sealed(path: Path | str, *, custodian: Path | str) -> RecordStream:
    """Returns the records of a sealed data set, for its owner to try something out.

    Args:
        path: The file.
        custodian: Directory of the custodian that keeps its key.

    Raises:
        CloisterError: If the file is damaged, or the custodian has another key.
    """
    unopened = read_sealed_data(Path(path))
    manifest = unopened.manifest
    key = data_key(read_custodian_place(Path(custodian)), manifest.key)
    return _SourceStream(
        format=manifest.source,
        schema=manifest.schema,
        splits=tuple(split for split in _SPLITS if manifest.records(split)),
        source=unopened.open(key, schema=manifest.schema),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _SourceStream:
    """The records of a data set that is read by index."""

    format: str
    schema: Schema
    splits: tuple[SplitName, ...]
    source: DataSource = field(repr=False)

    @property
    def total(self) -> int:
        return sum(len(self.source.split(split)) for split in self.splits)

    def chunks(self) -> Iterator[Chunk]:
        step = chunk_records(self.schema.record_bytes)
        for split in self.splits:
            records = self.source.split(split)
            for start in range(0, len(records), step):
                stop = min(start + step, len(records))
                yield Chunk(split=split, columns=records.read(np.arange(start, stop)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _ArrayStream:
    """Records in memory."""

    schema: Schema
    splits: Mapping[SplitName, Batch] = field(repr=False)

    @property
    def format(self) -> str:
        return "arrays"

    @property
    def total(self) -> int:
        return sum(_length(columns) for columns in self.splits.values())

    def chunks(self) -> Iterator[Chunk]:
        step = chunk_records(self.schema.record_bytes)
        for split, columns in self.splits.items():
            for start in range(0, _length(columns), step):
                yield Chunk(
                    split=split,
                    columns={
                        name: _native(column[start : start + step])
                        for name, column in columns.items()
                    },
                )


def _directory(place: Path, *, held_out: float) -> RecordStream:
    for name, pattern in _PATTERNS.items():
        if not any(place.glob(pattern)):
            continue
        try:
            return open_format(name, place)
        except ConfigError as error:
            # Which sources say it themselves is the format's to know.
            if error.code != "held-out-unsaid":
                raise
        total = open_format(name, place, held_out="all").total
        if total is None:
            raise RuntimeError("a directory's formats know their totals")
        return open_format(name, place, held_out=_count(held_out, total))
    raise ConfigError(
        f"no known records lie in {place}",
        code="data-missing",
        expected=f"a directory with {' or '.join(_PATTERNS.values())}",
        remedy="Name the format: cloister.api.open_format(NAME, SOURCE).",
    )


def _arrays(
    data: Arrays | Mapping[str, Arrays], schema: Schema, *, held_out: float
) -> RecordStream:
    if _by_split(data):
        given = cast("Mapping[SplitName, Arrays]", data)
        splits = {s: _columns(given[s], schema) for s in _SPLITS if s in given}
    else:
        columns = _columns(cast("Arrays", data), schema)
        total = _length(columns)
        border = total - _count(held_out, total)
        splits = {
            "train": {name: column[:border] for name, column in columns.items()},
            "held-out": {name: column[border:] for name, column in columns.items()},
        }
    return _ArrayStream(schema=check_schema(schema), splits=splits)


def _by_split(data: Mapping[str, object]) -> bool:
    """Returns whether the values are mappings: then the names are those of splits."""
    if not any(isinstance(value, Mapping) for value in data.values()):
        return False
    if not (
        set(data) <= set(_SPLITS)
        and all(isinstance(value, Mapping) for value in data.values())
    ):
        raise ConfigError(
            "these arrays are neither by field nor by split",
            code="data-schema",
            expected="one array a field, or one mapping of such arrays for each of "
            + " and ".join(_SPLITS),
            got=", ".join(map(ascii, data)),
            remedy="Take another name, or leave it away.",
        )
    return True


def _columns(arrays: Arrays, schema: Schema) -> Batch:
    """Returns the arrays in the schema's order, if they are its fields."""
    found = {name: np.asarray(array) for name, array in arrays.items()}
    for name in (*(f.name for f in schema.fields), *found):
        if name not in found or name not in {f.name for f in schema.fields}:
            raise _not_the_tasks(schema, ", ".join(found))
    for field_ in schema.fields:
        array = found[field_.name]
        # The name is the same for either order of bytes; chunks have the machine's.
        if (
            array.dtype.name != field_.dtype
            or not array.ndim
            or array.shape[1:] != field_.shape
        ):
            raise _not_the_tasks(schema, _in_words_of(field_.name, array))
    if len({len(array) for array in found.values()}) != 1:
        lengths = ", ".join(f"{name}: {len(array)}" for name, array in found.items())
        raise _not_the_tasks(schema, f"arrays of different lengths ({lengths})")
    return {field_.name: found[field_.name] for field_ in schema.fields}


def _native(rows: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.asarray(rows, rows.dtype.newbyteorder("="))


def _count(share: float, total: int) -> int:
    if not 0 <= share < 1:
        raise ConfigError(
            "no record would be left to train on",
            code="held-out-too-many",
            expected="held_out from 0 to less than 1, a share of the records",
            got=str(share),
        )
    return int(total * share)


def _length(columns: Arrays) -> int:
    return len(next(iter(columns.values())))


def _in_words(field_: Field) -> str:
    shape = ", ".join(("records", *map(str, field_.shape)))
    return f"{field_.name}: {field_.dtype} ({shape})"


def _in_words_of(name: str, array: NDArray[np.generic]) -> str:
    return f"{name}: {array.dtype} {array.shape}"


def _not_the_tasks(schema: Schema, got: str) -> ConfigError:
    return ConfigError(
        "these records are not the task's",
        code="data-schema",
        expected="; ".join(map(_in_words, schema.fields)),
        got=got,
        remedy="Convert the arrays, or correct schema() in the task.",
    )
