from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.support.sealed_sets import SCHEMA, columns_of

from cloister.errors import ConfigError
from cloister.storage.record_layout import (
    FIELD_TYPES,
    MAX_BOUND,
    MAX_DIMENSIONS,
    MAX_RECORD_BYTES,
    check_schema,
    layout_digest,
    outside_bound,
    pack,
    unpack,
)
from cloister.storage.records import Batch, Field, Schema

FIELD = Field(name="x", dtype="int32")


def schema_of(*fields: Field) -> Schema:
    return Schema(fields=fields)


@st.composite
def columns(draw: st.DrawFn) -> tuple[Schema, Batch]:
    count = draw(st.integers(0, 5))
    made: Batch = {}
    fields = []
    for number in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(sorted(FIELD_TYPES)))
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
        fields.append(Field(name=f"field-{number}", dtype=dtype, shape=shape))
        made[f"field-{number}"] = draw(hnp.arrays(dtype, (count, *shape)))
    return schema_of(*fields), made


@given(columns())
def test_what_is_packed_is_unpacked(made: tuple[Schema, Batch]) -> None:
    schema, batch = made
    table = pack(batch, check_schema(schema))
    count = len(next(iter(batch.values())))
    assert table.shape == (count, schema.record_bytes)
    back = unpack(table, schema)
    for name, column in batch.items():
        assert back[name].shape == column.shape
        # Bits, for NaN is not equal to itself.
        assert back[name].tobytes() == column.tobytes()


def test_fields_lie_back_to_back_and_little_endian() -> None:
    schema = schema_of(
        Field(name="day", dtype="int16"), Field(name="price", dtype="float32")
    )
    batch: Batch = {
        "day": np.array([258], "int16"),
        "price": np.array([1.5], "float32"),
    }
    packed = pack(batch, schema).tobytes()
    assert packed == b"\x02\x01" + np.array([1.5], "<f4").tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"extra": np.zeros(2, "uint8")},
        {"label": np.zeros(2, "int64")},
        {"label": np.zeros((2, 1), "uint8")},
        {"price": np.zeros((2, 2), ">f4")},
        {"image": np.zeros((3, 1, 3, 3), "uint8")},
    ],
)
def test_columns_that_are_not_the_schemas_are_a_bug(change: Batch) -> None:
    with pytest.raises(RuntimeError, match="schema"):
        pack({**columns_of(2), **change}, SCHEMA)


def test_a_missing_column_is_a_bug() -> None:
    made = columns_of(2)
    del made["price"]
    with pytest.raises(RuntimeError, match="schema"):
        pack(made, SCHEMA)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [FIELD, FIELD],
        [replace(FIELD, name="")],
        [replace(FIELD, name="two words")],
        [replace(FIELD, name="\x1b[31mred")],
        [replace(FIELD, name="a\n")],
        [replace(FIELD, name=".hidden")],
        [replace(FIELD, name="x" * 129)],
        # Other spellings of types, types of no fixed size, and no numbers.
        *([replace(FIELD, dtype=d)] for d in ("i4", "<i4", "int", "longdouble")),
        *([replace(FIELD, dtype=d)] for d in ("bool", "O", "datetime64", "S4", "")),
        [replace(FIELD, shape=(3, 0))],
        [replace(FIELD, shape=(3, -1))],
        [replace(FIELD, shape=(1,) * (MAX_DIMENSIONS + 1))],
        [replace(FIELD, shape=(MAX_RECORD_BYTES // 4 + 1,))],
        [replace(FIELD, shape=(MAX_RECORD_BYTES,) * MAX_DIMENSIONS)],
        [replace(FIELD, below=0)],
        [replace(FIELD, dtype="uint64", below=MAX_BOUND + 1)],
        [replace(FIELD, dtype="float32", below=10)],
    ],
)
def test_a_schema_that_stored_records_cannot_follow_is_refused(
    fields: list[Field],
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_schema(schema_of(*fields))
    assert caught.value.code == "schema-invalid"
    # Names come from strangers' manifests too.
    assert str(caught.value).isprintable()


def test_everything_that_a_layout_says_is_in_its_digest() -> None:
    label, price, image = SCHEMA.fields
    schemas = [
        SCHEMA,
        schema_of(price, label, image),
        schema_of(label, price),
        schema_of(replace(label, name="class"), price, image),
        schema_of(replace(label, dtype="int8"), price, image),
        schema_of(label, replace(price, shape=(2, 1)), image),
        schema_of(label, price, replace(image, shape=(3, 3))),
    ]
    assert len({layout_digest(schema) for schema in schemas}) == len(schemas)


def test_a_bound_is_not_in_the_layout() -> None:
    label, *others = SCHEMA.fields
    wider = schema_of(replace(label, below=11), *others)
    assert layout_digest(wider) == layout_digest(SCHEMA)


def test_the_digest_is_fixed_for_all_time() -> None:
    # A change here would make every sealed data set unreadable.
    assert layout_digest(SCHEMA).hex() == (
        "39880e221b3016e37332c50eb402de4257adda2f583441e04ba787a57a960648"
    )


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
def test_values_outside_a_bound_are_found_whatever_the_type(dtype: str) -> None:
    values = np.array([0, 9, 10, np.iinfo(dtype).max, np.iinfo(dtype).min], dtype)
    outside = [False, False, True, True, np.iinfo(dtype).min < 0]
    assert outside_bound(values, 10).tolist() == outside
