"""What people have at hand becomes records that are the task's, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.api.data import PartyData, as_stream, open_sealed
from cloister.cli.custodian_files import write_custodian
from cloister.cli.custodians import open_keys, open_register
from cloister.cli.data_sealing import seal_for
from cloister.cli.host_time import utc_now
from cloister.cli.places import read_custodian_place
from cloister.cli.site_files import COLLATERAL
from cloister.errors import ConfigError, StorageError, VerificationError
from cloister.storage.formats import open_format
from cloister.storage.record_stream import Chunk, RecordStream
from cloister.storage.records import Field, Schema

SCHEMA = Schema(
    fields=(
        Field(name="row", dtype="float32", shape=(2,)),
        Field(name="label", dtype="uint8", below=3),
    )
)


def rows(count: int) -> dict[str, np.ndarray]:
    """In another order than the task's."""
    return {
        "label": (np.arange(count) % 3).astype(np.uint8),
        "row": np.arange(2 * count, dtype=np.float32).reshape(count, 2),
    }


def lengths(stream: RecordStream) -> dict[str, int]:
    found = {"train": 0, "held-out": 0}
    for chunk in stream.chunks():
        found[chunk.split] += len(chunk)
    return found


def read(stream: RecordStream, split: str) -> np.ndarray:
    parts = [chunk.columns["row"] for chunk in stream.chunks() if chunk.split == split]
    return np.concatenate(parts)


@given(count=st.integers(1, 5000), share=st.floats(0, 0.99))
def test_of_plain_arrays_the_last_share_is_held_out(count: int, share: float) -> None:
    data = rows(count)
    stream = as_stream(data, SCHEMA, held_out=share)
    held_out = int(count * share)
    assert lengths(stream) == {"train": count - held_out, "held-out": held_out}
    assert stream.total == count
    assert (read(stream, "train") == data["row"][: count - held_out]).all()


def test_arrays_take_the_order_of_the_tasks_fields() -> None:
    (chunk,) = as_stream(rows(3), SCHEMA, held_out=0).chunks()
    assert isinstance(chunk, Chunk)
    assert list(chunk.columns) == ["row", "label"]


def test_arrays_by_split_stay_in_their_splits() -> None:
    stream = as_stream({"train": rows(4), "held-out": rows(2)}, SCHEMA, held_out=0.5)
    assert lengths(stream) == {"train": 4, "held-out": 2}


def test_a_field_may_be_called_as_a_split_is() -> None:
    schema = Schema(fields=(Field(name="train", dtype="float32", shape=(2,)),))
    stream = as_stream({"train": rows(5)["row"]}, schema, held_out=0.4)
    assert lengths(stream) == {"train": 3, "held-out": 2}
    both = as_stream({"train": {"train": rows(5)["row"]}}, schema, held_out=0.4)
    assert lengths(both) == {"train": 5, "held-out": 0}


@pytest.mark.parametrize(
    "data",
    [{"train": rows(3), "test": rows(3)}, {"train": rows(3), "row": rows(3)["row"]}],
    ids=["another split", "a field"],
)
def test_arrays_by_split_and_by_something_else_are_refused(data: PartyData) -> None:
    with pytest.raises(ConfigError, match="neither by field nor by split") as caught:
        as_stream(data, SCHEMA, held_out=0)
    assert caught.value.code == "data-schema"


def test_arrays_of_the_other_order_of_bytes_are_converted() -> None:
    swapped = {**rows(5), "row": rows(5)["row"].astype(">f4")}
    for data in (swapped, {"train": swapped}):
        stream = as_stream(data, SCHEMA, held_out=0)
        assert read(stream, "train").tolist() == rows(5)["row"].tolist()
        for chunk in stream.chunks():
            assert chunk.columns["row"].dtype == np.dtype("float32")


def test_large_records_come_in_small_chunks() -> None:
    schema = Schema(fields=(Field(name="row", dtype="uint8", shape=(6 << 20,)),))
    data = {"row": np.zeros((5, 6 << 20), np.uint8)}
    chunks = as_stream(data, schema, held_out=0).chunks()
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]


def test_a_stream_is_taken_as_it_is() -> None:
    stream = as_stream(rows(3), SCHEMA, held_out=0)
    assert as_stream(stream, SCHEMA, held_out=0.5) is stream


def test_a_directory_of_arrays_is_recognised(tmp_path: Path) -> None:
    for name, array in rows(10).items():
        np.save(tmp_path / f"{name}.npy", array)
    assert lengths(as_stream(str(tmp_path), SCHEMA, held_out=0.2)) == {
        "train": 8,
        "held-out": 2,
    }


@pytest.mark.parametrize("split", ["train", "held-out"])
@pytest.mark.parametrize("share", [0, 0.2])
def test_a_directory_of_one_split_tells_it_as_the_format_says(
    tmp_path: Path, split: str, share: float
) -> None:
    (tmp_path / split).mkdir()
    for name, array in rows(10).items():
        np.save(tmp_path / split / f"{name}.npy", array)
    found = lengths(as_stream(tmp_path, SCHEMA, held_out=share))
    assert found == {"train": 0, "held-out": 0} | {split: 10}
    assert found == lengths(open_format("arrays", tmp_path))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"row": rows(3)["row"]},
        {**rows(3), "extra": np.zeros(3)},
        {**rows(3), "row": np.zeros((3, 2))},
        {**rows(3), "row": np.zeros((3, 5), np.float32)},
        {**rows(3), "label": np.zeros(4, np.uint8)},
        {**rows(3), "label": np.uint8(1)},
        {"train": {**rows(3), "label": np.uint8(1)}},
    ],
    ids=[
        "none",
        "missing",
        "unknown",
        "type",
        "shape",
        "length",
        "one",
        "one by split",
    ],
)
def test_arrays_that_are_not_the_tasks_are_refused(data: PartyData) -> None:
    with pytest.raises(ConfigError) as caught:
        as_stream(data, SCHEMA, held_out=0)
    assert caught.value.code == "data-schema"
    assert "row: float32 (records, 2)" in caught.value.expected


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        as_stream(rows(3), SCHEMA, held_out=1.0)
    assert caught.value.code == "held-out-too-many"


def test_a_directory_of_nothing_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        as_stream(tmp_path, SCHEMA, held_out=0)
    assert caught.value.code == "data-missing"


def custodian(directory: Path) -> Path:
    directory.mkdir()
    write_custodian(
        directory, party=directory.name, address="127.0.0.1:7000", collateral=COLLATERAL
    )
    place = read_custodian_place(directory)
    with open_register(place) as register:
        open_keys(place, register).add("data", label="first", at=utc_now())
    return directory


def test_an_owner_reads_its_sealed_records_again(tmp_path: Path) -> None:
    alice, bob = custodian(tmp_path / "alice"), custodian(tmp_path / "bob")
    path = tmp_path / "data.sealed"
    whole = as_stream(rows(5), SCHEMA, held_out=0.4)
    seal_for(read_custodian_place(alice), whole, path=path)
    opened = open_sealed(path, custodian=alice)
    assert (opened.format, opened.total) == ("arrays", 5)
    assert lengths(opened) == {"train": 3, "held-out": 2}
    assert (read(opened, "train") == read(whole, "train")).all()
    with pytest.raises(VerificationError):
        open_sealed(path, custodian=bob)
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError):
        list(open_sealed(path, custodian=alice).chunks())


def test_large_sealed_records_are_read_in_small_chunks(tmp_path: Path) -> None:
    alice = custodian(tmp_path / "alice")
    schema = Schema(fields=(Field(name="row", dtype="uint8", shape=(6 << 20,)),))
    whole = as_stream({"row": np.zeros((3, 6 << 20), np.uint8)}, schema, held_out=0)
    path = tmp_path / "data.sealed"
    seal_for(read_custodian_place(alice), whole, path=path)
    opened = open_sealed(path, custodian=alice)
    assert [len(chunk) for chunk in opened.chunks()] == [2, 1]
