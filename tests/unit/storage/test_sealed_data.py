from __future__ import annotations

import os
import socket
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.sealed_sets import (
    DATA_KEY,
    SCHEMA,
    ColumnStream,
    Owner,
    SealedSet,
    columns_of,
    same_records,
    sealed_set,
    some_stream,
)

from cloister.errors import ConfigError, StorageError
from cloister.storage.keys import Secret
from cloister.storage.manifest_signature import sign_manifest
from cloister.storage.record_stream import CHUNK_BYTES
from cloister.storage.records import Batch, Field, Schema
from cloister.storage.sealed_data import read_sealed_data
from cloister.storage.sealed_file import END, MAGIC


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> SealedSet:
    """A sealed data set that tests leave as it is."""
    return sealed_set(tmp_path_factory.mktemp("kept") / "data.sealed")


@pytest.fixture
def made(tmp_path: Path) -> SealedSet:
    """One that they change."""
    return sealed_set(tmp_path / "data.sealed")


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        act()
    return caught.value.code


@given(indices=st.lists(st.integers(0, 6), max_size=20))
def test_records_are_read_in_the_order_asked_for(
    kept: SealedSet, indices: list[int]
) -> None:
    batch = kept.opened().split("train").read(np.array(indices, np.int64))
    assert same_records(batch, kept.stream.splits["train"], indices)
    for column in batch.values():
        assert column.flags.aligned
        assert column.flags.c_contiguous
        assert column.flags.writeable


@pytest.mark.parametrize("indices", [[7], [-1], [0, 7], [2**40]])
def test_records_that_are_not_there_are_a_bug_of_the_caller(
    kept: SealedSet, indices: list[int]
) -> None:
    with pytest.raises(IndexError):
        kept.opened().split("train").read(np.array(indices))


def test_what_is_read_is_a_copy(kept: SealedSet) -> None:
    train = kept.opened().split("train")
    train.read(np.array([0]))["label"][...] = 11
    assert train.read(np.array([0]))["label"][0] < 10


def test_long_runs_of_records_are_read_piece_by_piece(tmp_path: Path) -> None:
    # Of 64 records and of one MiB; both ends of a piece are met.
    wide = Field(name="x", dtype="uint8", shape=(300_000,))
    for stream in (
        ColumnStream(splits={"train": columns_of(150)}, chunk_records=64),
        ColumnStream(
            splits={"train": {"x": np.full((7, 300_000), 3, np.uint8)}},
            schema=Schema(fields=(wide,)),
        ),
    ):
        made = sealed_set(tmp_path / "s", stream=stream)
        count = made.made.manifest.train
        indices = [*range(count), 0, 1, 1]
        batch = made.opened().split("train").read(np.array(indices))
        assert same_records(batch, stream.splits["train"], indices)
        made.path.unlink()


def test_many_threads_read_at_once(kept: SealedSet) -> None:
    source = kept.opened()
    orders = [np.random.default_rng(seed).integers(0, 7, 500) for seed in range(4)]
    right: list[bool] = []

    def read(order: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        batch = source.split("train").read(order)
        right.append(same_records(batch, kept.stream.splits["train"], order.tolist()))

    threads = [threading.Thread(target=read, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * len(orders)


def test_a_split_without_records_is_refused_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    for number, empty in enumerate(("train", "held-out")):
        stream = some_stream(train=number * 3, held_out=3 - number * 3)
        made = sealed_set(tmp_path / empty, stream=stream)
        assert made.opened().verify() == 3
        assert code_of(lambda: made.opened().split(empty)) == "data-empty"  # type: ignore[arg-type]  # noqa: B023


def test_everything_is_verified_and_told(kept: SealedSet) -> None:
    told: list[int] = []
    assert kept.opened().verify(told.append) == 11
    assert told == [7, 11]


def test_a_repr_shows_counts_and_no_record(kept: SealedSet) -> None:
    source = kept.opened()
    assert repr(source) == f"SealedDataSet(train: 7, held-out: 4, {source.digest})"


# The key, the pin and the schema.


def test_another_key_is_refused_by_name(kept: SealedSet) -> None:
    found = kept.found()
    wrong = Secret(bytes(32))
    assert code_of(lambda: found.open(wrong, schema=SCHEMA)) == "data-key-differs"
    short = Secret(b"")
    assert code_of(lambda: found.open(short, schema=SCHEMA)) == "data-key-differs"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"digest": "sha256:" + "0" * 64}, "data-differs"),
        ({"owner": "ed25519:" + "0" * 64}, "data-foreign"),
        ({"key": "sha256:" + "0" * 64}, "data-key-differs"),
    ],
)
def test_each_part_of_a_pin_counts(
    kept: SealedSet, change: dict[str, str], code: str
) -> None:
    pin = replace(kept.pin, **change)
    assert code_of(lambda: read_sealed_data(kept.path).check_pin(pin)) == code


LABEL, PRICE, IMAGE = SCHEMA.fields


@pytest.mark.parametrize(
    "fields",
    [
        (LABEL, PRICE),
        (PRICE, LABEL, IMAGE),
        (replace(LABEL, name="class"), PRICE, IMAGE),
        (replace(LABEL, dtype="int8"), PRICE, IMAGE),
        (LABEL, replace(PRICE, dtype="int32"), IMAGE),
        (LABEL, PRICE, replace(IMAGE, shape=(9,))),
        (replace(LABEL, below=9), PRICE, IMAGE),
    ],
)
def test_records_that_are_not_the_tasks_are_refused(
    kept: SealedSet, fields: tuple[Field, ...]
) -> None:
    schema = Schema(fields=fields)
    found = kept.found()
    assert code_of(lambda: found.open(DATA_KEY, schema=schema)) == "data-schema"


@pytest.mark.parametrize("below", [10, 11, None])
def test_a_task_that_asks_for_less_takes_them(
    kept: SealedSet, below: int | None
) -> None:
    schema = Schema(fields=(replace(LABEL, below=below), PRICE, IMAGE))
    assert kept.found().open(DATA_KEY, schema=schema).verify() == 11


# The file.


def test_any_flipped_bit_of_the_file_is_refused(made: SealedSet) -> None:
    content = made.path.read_bytes()
    source = np.random.default_rng(3)
    for bit in source.integers(0, len(content) * 8, 300).tolist():
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        made.path.write_bytes(changed)
        code = code_of(lambda: made.opened().verify())
        assert code in {
            "data-damaged",
            "data-malformed",
            "data-signature",
            "data-truncated",
        }


def test_any_prefix_of_the_file_is_refused(made: SealedSet) -> None:
    content = made.path.read_bytes()
    for length in range(len(content)):
        os.truncate(made.path, 0)
        made.path.write_bytes(content[:length])
        code = code_of(lambda: read_sealed_data(made.path))
        assert code == ("data-malformed" if length < len(MAGIC) else "data-truncated")


@given(content=st.binary(max_size=200), wrapped=st.booleans())
def test_any_bytes_end_in_our_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, *, wrapped: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "s"
    length = (len(content) // 2).to_bytes(8, "little")
    path.write_bytes(MAGIC + content + length + END if wrapped else content)
    assert code_of(lambda: read_sealed_data(path)) in {
        "data-malformed",
        "data-truncated",
    }


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**20 + 1, 600])
def test_a_manifest_longer_than_its_file_is_refused_unread(
    tmp_path: Path, length: int
) -> None:
    path = tmp_path / "s"
    path.write_bytes(MAGIC + b"{}" + length.to_bytes(8, "little") + END)
    assert code_of(lambda: read_sealed_data(path)) == "data-malformed"


def test_the_two_ends_of_a_file_do_not_overlap(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(MAGIC + END[1:])
    assert code_of(lambda: read_sealed_data(path)) == "data-malformed"


def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe, directory, line = (tmp_path / name for name in ("pipe", "dir", "socket"))
    os.mkfifo(pipe)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(line))
        for path in (directory, pipe, Path("/dev/zero")):
            assert code_of(lambda: read_sealed_data(path)) == "data-malformed"  # noqa: B023
        assert code_of(lambda: read_sealed_data(line)) == "data-unreadable"


@pytest.mark.parametrize("name", ["absent", "file/below", "nul\0"])
def test_a_file_that_is_not_there_is_a_matter_of_configuration(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        read_sealed_data(tmp_path / name)
    assert caught.value.code == "data-missing"


def test_no_file_stays_open_that_was_refused(made: SealedSet) -> None:
    made.path.write_bytes(b"")
    for path in (made.path, made.path.parent):
        assert code_of(lambda: read_sealed_data(path)) == "data-malformed"  # noqa: B023
    held = {os.path.realpath(it) for it in Path("/proc/self/fd").iterdir()}
    assert not held & {str(made.path), str(made.path.parent)}


def test_a_closed_set_is_not_read_from_whatever_has_its_number(
    made: SealedSet,
) -> None:
    found = made.found()
    train = found.open(DATA_KEY, schema=SCHEMA).split("train")
    found.close()
    found.close()
    with made.path.open("rb"):
        assert code_of(lambda: train.read(np.array([0]))) == "data-unreadable"


def test_a_bound_that_the_owner_signed_and_did_not_keep_is_found(
    tmp_path: Path,
) -> None:
    # What an index into a table would be is checked where it is read.
    owner = Owner()
    made = sealed_set(tmp_path / "s", owner=owner)
    narrow = Schema(fields=(replace(LABEL, below=1), PRICE, IMAGE))
    line = sign_manifest(replace(made.made.manifest, schema=narrow), signer=owner)
    records = made.path.read_bytes()[: made.place("held-out", 4).start]
    made.path.write_bytes(records + line + len(line).to_bytes(8, "little") + END)
    lying = read_sealed_data(made.path).open(DATA_KEY, schema=narrow)
    with pytest.raises(StorageError) as caught:
        lying.split("train").read(np.arange(7))
    first = int(
        np.flatnonzero(np.asarray(made.stream.splits["train"]["label"], int))[0]
    )
    assert caught.value.code == "data-value-out-of-range"
    assert f"train record {first} has a label" in str(caught.value)


def test_values_are_held_to_the_tasks_bound_where_the_manifest_names_none(
    tmp_path: Path,
) -> None:
    field = Field(name="x", dtype="int32")
    stream = ColumnStream(
        splits={"train": {"x": np.array([3, 0, 41], np.int32)}},
        schema=Schema(fields=(field,)),
    )
    made = sealed_set(tmp_path / "s", stream=stream)
    wanted = Schema(fields=(replace(field, below=41),))
    train = read_sealed_data(made.path).open(DATA_KEY, schema=wanted).split("train")
    assert train.read(np.array([0, 1]))["x"].tolist() == [3, 0]
    assert code_of(lambda: train.read(np.array([1, 2]))) == "data-value-out-of-range"
    wider = Schema(fields=(replace(field, below=42),))
    assert read_sealed_data(made.path).open(DATA_KEY, schema=wider).verify() == 3


@pytest.mark.parametrize("field", [replace(PRICE, below=9), replace(LABEL, below=0)])
def test_a_task_with_a_bound_that_means_nothing_is_refused(
    kept: SealedSet, field: Field
) -> None:
    fields = [field if it.name == field.name else it for it in SCHEMA.fields]
    found = kept.found()
    with pytest.raises(ConfigError) as caught:
        found.open(DATA_KEY, schema=Schema(fields=tuple(fields)))
    assert caught.value.code == "schema-invalid"


def test_memory_does_not_grow_with_the_record(tmp_path: Path) -> None:
    size = 4 * 2**20
    columns: Batch = {"x": np.zeros((24, size), np.uint8)}
    schema = Schema(fields=(Field(name="x", dtype="uint8", shape=(size,)),))
    stream = ColumnStream(splits={"train": columns}, schema=schema, chunk_records=4)
    made = sealed_set(tmp_path / "s", stream=stream)
    tracemalloc.start()
    try:
        assert made.opened().verify() == 24
        assert tracemalloc.get_traced_memory()[1] < 4 * CHUNK_BYTES
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    columns: Batch = {"x": np.zeros((8192, 1024), np.uint8)}
    schema = Schema(fields=(Field(name="x", dtype="uint8", shape=(1024,)),))
    stream = ColumnStream(splits={"train": columns}, schema=schema, chunk_records=1024)
    tracemalloc.start()
    try:
        made = sealed_set(tmp_path / "s", stream=stream)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        tracemalloc.reset_peak()
        assert made.opened().verify() == 8192
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()
