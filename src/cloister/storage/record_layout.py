"""How one record lies in bytes: its fields back to back, little endian, no padding."""

from __future__ import annotations

import hashlib
import re
from typing import Final

import cbor2
import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError
from cloister.storage.records import Batch, Field, Schema

# By these names alone: each type has one spelling and one size on every machine.
FIELD_TYPES: Final = frozenset(
    [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    + ["float16", "float32", "float64"]
)
MAX_DIMENSIONS: Final = 16  # of one record's field; NumPy has 64 in all
MAX_RECORD_BYTES: Final = 2**30  # some of them must fit into memory
MAX_BOUND: Final = 2**63 - 1  # what JSON readers take for an integer

# Names stand in messages and on terminals, also those that a stranger made up.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LABEL: Final = "cloister/record-layout/1"


def check_schema(schema: Schema) -> Schema:
    """Returns `schema`, if stored records can follow it.

    1. It has fields, of distinct names of letters, digits, ``_``, ``.`` and ``-``.
    2. Each is of one of `FIELD_TYPES`, and of at most `MAX_DIMENSIONS` dimensions,
       none of them empty.
    3. Bounds are from 1 to `MAX_BOUND`, and of integer fields only.
    4. A record has at most `MAX_RECORD_BYTES`.

    Raises:
        ConfigError: If not (``schema-invalid``).
    """
    # Step 1
    names = [field.name for field in schema.fields]
    if not names:
        raise _schema_error("no fields", got="none")
    for number, name in enumerate(names, start=1):
        if not _NAME.fullmatch(name):
            raise _schema_error(f"the name of field {number}", got=ascii(name[:128]))
    if len(set(names)) != len(names):
        raise _schema_error("field names repeat", got=", ".join(names))
    # Steps 2 and 3
    for field in schema.fields:
        _check_field(field)
    # Step 4
    if schema.record_bytes > MAX_RECORD_BYTES:
        raise _schema_error("a record is too large", got=f"{schema.record_bytes} bytes")
    return schema


def layout_digest(schema: Schema) -> bytes:
    """Returns SHA-256 over names, types and shapes in their order: 32 bytes.

    Bounds of values are not in it: how a record lies does not depend on them.
    """
    fields = [[f.name, f.dtype, list(f.shape)] for f in schema.fields]
    return hashlib.sha256(cbor2.dumps([_LABEL, fields], canonical=True)).digest()


def unpack(table: NDArray[np.uint8], schema: Schema) -> Batch:
    """Returns the fields of records, as views: nothing is copied.

    Args:
        table: (records, schema.record_bytes).
        schema: The fields.
    """
    columns: Batch = {}
    at = 0
    for field in schema.fields:
        # The bytes of one field in every row, seen as its type.
        column = table[:, at : at + field.size_bytes].view(stored_dtype(field))
        columns[field.name] = column.reshape(len(table), *field.shape)
        at += field.size_bytes
    return columns


def pack(columns: Batch, schema: Schema) -> NDArray[np.uint8]:
    """Returns records as they are stored: (records, schema.record_bytes).

    Args:
        columns: Each field's values, (records, *field.shape), of the field's type.
        schema: The fields.

    Raises:
        RuntimeError: If the columns are not the schema's; a bug of the caller.
    """
    if columns.keys() != {field.name for field in schema.fields}:
        raise RuntimeError("the columns are not the schema's fields")
    count = len(next(iter(columns.values())))
    table = np.empty((count, schema.record_bytes), np.uint8)
    places = unpack(table, schema)
    for field in schema.fields:
        column = columns[field.name]
        place = places[field.name]
        if column.shape != place.shape or column.dtype != np.dtype(field.dtype):
            raise RuntimeError(f"the column {field.name} is not the schema's")
        np.copyto(place, column)
    return table


def outside_bound(column: NDArray[np.generic], below: int) -> NDArray[np.bool_]:
    """Returns which values are not from 0 to below `below`: of the column's shape."""
    within: NDArray[np.bool_] = np.greater_equal(column, 0) & np.less(column, below)
    return ~within


def stored_dtype(field: Field) -> np.dtype[np.generic]:
    """Returns the type of a field as it is stored."""
    return np.dtype(field.dtype).newbyteorder("<")


def _check_field(field: Field) -> None:
    if field.dtype not in FIELD_TYPES:
        raise _schema_error(f"the type of {field.name}", got=ascii(field.dtype[:32]))
    if len(field.shape) > MAX_DIMENSIONS:
        raise _schema_error(
            f"the shape of {field.name}", got=f"{len(field.shape)} dimensions"
        )
    if any(size < 1 for size in field.shape):
        raise _schema_error(f"field {field.name} is empty", got=str(field.shape))
    if field.below is None:
        return
    if field.dtype.startswith("float") or not 1 <= field.below <= MAX_BOUND:
        raise _schema_error(
            f"the bound of {field.name}", got=f"{field.below} for {field.dtype}"
        )


def _schema_error(what: str, *, got: str) -> ConfigError:
    return ConfigError(
        f"the schema cannot describe stored records: {what}",
        code="schema-invalid",
        expected="fields of distinct plain names, of integer or floating-point types,"
        f" bounds from 1 to {MAX_BOUND} for integers, {MAX_RECORD_BYTES} bytes at most",
        got=got,
        remedy="Correct schema() in the task, or the fields of the source.",
    )
