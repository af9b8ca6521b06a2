from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.canaries import Canaries
from tests.support.sealed_sets import (
    DATA_KEY,
    SCHEMA,
    SEALED_BYTES,
    ColumnStream,
    Owner,
    columns_of,
    same_records,
    sealed_set,
    some_stream,
)
from typing_extensions import override

from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.storage.data_sealing import seal_data
from cloister.storage.record_cipher import RecordCipher
from cloister.storage.record_layout import layout_digest, pack
from cloister.storage.record_stream import Chunk
from cloister.storage.records import Batch, Field, Schema
from cloister.storage.sealed_file import END, MAGIC

X = Field(name="x", dtype="int32")


def of_x(values: list[int], field: Field = X) -> ColumnStream:
    return ColumnStream(
        splits={"train": {"x": np.array(values, field.dtype)}},
        schema=Schema(fields=(field,)),
    )


def refused(stream: ColumnStream, directory: Path) -> CloisterError:
    """Returns why a source is not sealed; nothing is left of it."""
    with pytest.raises(CloisterError) as caught:
        sealed_set(directory / "data.sealed", stream=stream)
    assert list(directory.iterdir()) == []
    return caught.value


def test_what_is_sealed_is_read_back_in_order(tmp_path: Path) -> None:
    made = sealed_set(tmp_path / "data.sealed")
    for split, columns in made.stream.splits.items():
        everything = list(range(len(columns["label"])))
        read = made.opened().split(split).read(np.array(everything))
        assert same_records(read, columns, everything)


@given(
    train=st.integers(0, 9),
    held_out=st.integers(0, 9),
    chunk=st.integers(1, 9),
)
def test_the_file_has_the_length_that_follows_from_its_records(
    tmp_path_factory: pytest.TempPathFactory, train: int, held_out: int, chunk: int
) -> None:
    if not train + held_out:
        return
    stream = replace(some_stream(train=train, held_out=held_out), chunk_records=chunk)
    made = sealed_set(tmp_path_factory.mktemp("set") / "data.sealed", stream=stream)
    content = made.path.read_bytes()
    assert len(content) == made.made.size_bytes
    assert content.startswith(MAGIC)
    assert content.endswith(END)
    line = int.from_bytes(content[-len(END) - 8 : -len(END)], "little")
    records = SEALED_BYTES * (train + held_out)
    assert len(content) == len(MAGIC) + records + line + 8 + len(END)
    assert (made.made.manifest.train, made.made.manifest.held_out) == (train, held_out)
    assert made.opened().verify() == train + held_out


def test_records_lie_in_the_file_as_the_specification_says(tmp_path: Path) -> None:
    made = sealed_set(tmp_path / "data.sealed")
    cipher = RecordCipher(
        DATA_KEY,
        dataset_id=made.made.manifest.dataset_id,
        layout=layout_digest(SCHEMA),
    )
    content = made.path.read_bytes()
    for split, columns in made.stream.splits.items():
        for index, record in enumerate(pack(columns, SCHEMA)):
            assert content[made.place(split, index)] == cipher.seal(
                record.tobytes(), split=split, index=index
            )


def test_no_record_is_in_the_file_in_the_clear(tmp_path: Path) -> None:
    columns = columns_of(3)
    canaries = Canaries()
    canaries.plant("key", DATA_KEY.reveal())
    for row, record in enumerate(pack(columns, SCHEMA)):
        canaries.plant(f"record {row}", record.tobytes())
    sealed_set(tmp_path / "data.sealed", stream=ColumnStream(splits={"train": columns}))
    assert canaries.found_below(tmp_path) == {}


def test_the_same_records_never_look_the_same(tmp_path: Path) -> None:
    stream, owner = some_stream(), Owner()
    one, two = (
        sealed_set(tmp_path / name, stream=stream, owner=owner) for name in "ab"
    )
    assert one.made.digest != two.made.digest
    records = slice(len(MAGIC), one.place("held-out", 4).start)
    first, second = (made.path.read_bytes()[records] for made in (one, two))
    blocks = {first[at : at + 8] for at in range(len(first) - 8)}
    assert not blocks & {second[at : at + 8] for at in range(len(second) - 8)}


def test_the_file_is_its_owners_only(tmp_path: Path) -> None:
    assert sealed_set(tmp_path / "s").path.stat().st_mode & 0o777 == 0o600


def test_progress_is_told_after_each_chunk(tmp_path: Path) -> None:
    told: list[int] = []
    seal_data(
        some_stream(train=7, held_out=4),
        path=tmp_path / "s",
        key=DATA_KEY,
        signer=Owner(),
        on_records=told.append,
    )
    assert told == [3, 6, 7, 10, 11]


@pytest.mark.parametrize("below", [None, 100])
def test_a_manifest_says_nothing_that_follows_from_values(
    tmp_path: Path, below: int | None
) -> None:
    # The largest value of a field would be one party's, and hosts read manifests.
    made = sealed_set(tmp_path / "s", stream=of_x([3, 0, 41], replace(X, below=below)))
    assert made.made.manifest.schema.fields[0].below == below


@pytest.mark.parametrize(
    ("values", "record"), [([9, 10], 1), ([-1, 0], 0), ([0] * 7 + [2**31 - 1], 7)]
)
def test_a_value_out_of_its_bound_is_refused_by_name(
    tmp_path: Path, values: list[int], record: int
) -> None:
    error = refused(of_x(values, replace(X, below=10)), tmp_path)
    assert error.code == "data-value-out-of-range"
    assert f"train record {record} has a x out of range" in str(error)
    # The value is the owner's to know.
    assert error.got == ""


def test_a_source_without_records_is_refused(tmp_path: Path) -> None:
    assert refused(ColumnStream(splits={}), tmp_path).code == "data-empty"
    empty = ColumnStream(splits={"train": columns_of(0)})
    assert refused(empty, tmp_path).code == "data-empty"


def test_a_schema_that_cannot_be_stored_is_refused_unread(tmp_path: Path) -> None:
    for schema, code in (
        (Schema(fields=()), "schema-invalid"),
        (
            Schema(
                fields=tuple(Field(name=f"{n:0128}", dtype="int8") for n in range(5000))
            ),
            "data-too-large",
        ),
    ):
        stream = Unreadable(splits={}, schema=schema)
        assert refused(stream, tmp_path).code == code
    assert isinstance(
        refused(Unreadable(splits={}, schema=Schema(fields=())), tmp_path), ConfigError
    )


@dataclass(frozen=True, kw_only=True)
class Unreadable(ColumnStream):
    """A source that nobody may ask for records."""

    @override
    def chunks(self) -> Iterator[Chunk]:
        raise AssertionError("it was read")


@dataclass(frozen=True, kw_only=True)
class Failing(ColumnStream):
    """A source that ends in an error after its first records."""

    fault: BaseException

    @override
    def chunks(self) -> Iterator[Chunk]:
        yield from ColumnStream(splits=self.splits).chunks()
        raise self.fault


@pytest.mark.parametrize("fault", [StorageError("x", code="x"), KeyboardInterrupt()])
def test_a_source_that_fails_leaves_nothing(
    tmp_path: Path, fault: BaseException
) -> None:
    stream = Failing(splits={"train": columns_of(9)}, fault=fault)
    with pytest.raises(type(fault)):
        sealed_set(tmp_path / "s", stream=stream)
    assert list(tmp_path.iterdir()) == []


def test_held_out_records_before_others_are_a_bug_of_the_format(tmp_path: Path) -> None:
    columns: Batch = columns_of(2)
    stream = ColumnStream(splits={"held-out": columns, "train": columns})
    with pytest.raises(RuntimeError, match="training records first"):
        sealed_set(tmp_path / "s", stream=stream)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "data.sealed"
    path.write_bytes(b"before")
    with pytest.raises(StorageError) as caught:
        sealed_set(path, stream=Unreadable(splits={}))
    assert caught.value.code == "data-exists"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError) as caught:
        sealed_set(path, stream=Unreadable(splits={}))
    assert caught.value.code == "data-exists"
    assert list(tmp_path.iterdir()) == [path]


@dataclass(frozen=True, kw_only=True)
class Overtaken(ColumnStream):
    """A source during whose reading another sealing takes the name."""

    path: Path

    @override
    def chunks(self) -> Iterator[Chunk]:
        yield from ColumnStream(splits=self.splits).chunks()
        self.path.write_bytes(b"the other's")


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "data.sealed"
    with pytest.raises(StorageError) as caught:
        sealed_set(path, stream=Overtaken(splits={"train": columns_of(2)}, path=path))
    assert caught.value.code == "data-exists"
    assert path.read_bytes() == b"the other's"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_cannot_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError) as caught:
        sealed_set(tmp_path / "absent" / "s")
    assert caught.value.code == "data-unwritable"

    def full(_: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    error = refused(some_stream(), tmp_path)
    assert (error.code, error.got) == ("data-unwritable", "no space left")
