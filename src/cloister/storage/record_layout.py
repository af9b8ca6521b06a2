"""How one record lies in bytes: its fields back to back, little endian, no padding."""

from __future__ import annotations

import hashlib

import cbor2
import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError
from cloister.storage.records import Batch, Field, Schema

_LABEL = "cloister/record-layout/1"


def check_schema(schema: Schema) -> Schema:
    """Returns `schema`, if stored records can follow it.

    Raises:
        ConfigError: If it has no fields, names repeat, or a field is empty or of no
            integer or floating-point type (``schema-invalid``).
    """
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


def _schema_error(what: str, *, got: str) -> ConfigError:
    return ConfigError(
        f"the schema cannot describe stored records: {what}",
        code="schema-invalid",
        expected="fields of distinct names and integer or floating-point types",
        got=got,
        remedy="Correct schema() in the task.",
    )
