from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloister.errors import ConfigError, StorageError
from cloister.storage.raw_shard import RawShard, digest_raw_shard, open_raw_shard
from cloister.storage.records import Field, Schema

LABEL = Field(name="label", dtype="uint8", below=10)
SCHEMA = Schema(fields=(LABEL, Field(name="image", dtype="uint8", shape=(3, 2, 2))))
RECORD = SCHEMA.record_bytes


def records(count: int, *, start: int = 0) -> bytes:
    rows = np.zeros((count, RECORD), np.uint8)
    rows[:, 0] = np.arange(start, start + count) % 10
    rows[:, 1:] = np.arange(count * (RECORD - 1)).reshape(count, -1) + start
    return rows.tobytes()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "data_batch_1.bin").write_bytes(records(3))
    (tmp_path / "data_batch_2.bin").write_bytes(records(2, start=3))
    (tmp_path / "test_batch.bin").write_bytes(records(4, start=5))
    (tmp_path / "batches.meta.txt").write_text("not a record")
    return tmp_path


def opened(directory: Path, schema: Schema = SCHEMA) -> RawShard:
    return open_raw_shard(directory, schema)


def test_records_are_numbered_through_the_files_in_order_of_names(
    directory: Path,
) -> None:
    train = opened(directory).split("train")
    assert len(train) == 5
    assert len(opened(directory).split("held-out")) == 4
    batch = train.read(np.array([4, 0, 3, 0]))
    assert batch["label"].tolist() == [4, 0, 3, 0]
    assert batch["image"].shape == (4, 3, 2, 2)
    assert batch["image"][1].ravel().tolist() == list(range(12))


def test_what_is_read_is_a_copy(directory: Path) -> None:
    train = opened(directory).split("train")
    train.read(np.array([0]))["label"][...] = 9
    assert train.read(np.array([0]))["label"].tolist() == [0]


def test_wider_fields_are_read_little_endian_wherever_they_lie(tmp_path: Path) -> None:
    schema = Schema(
        fields=(
            LABEL,
            Field(name="price", dtype="float32", shape=(2,)),
            Field(name="day", dtype="int16"),
        )
    )
    row = b"\x07" + np.array([1.5, -2.0], "<f4").tobytes() + b"\x02\x01"
    (tmp_path / "data_batch.bin").write_bytes(row * 2)
    (tmp_path / "test_batch.bin").write_bytes(row)
    batch = opened(tmp_path, schema).split("train").read(np.array([1]))
    assert batch["price"].tolist() == [[1.5, -2.0]]
    assert batch["day"].tolist() == [258]


def test_the_digest_is_the_same_with_and_without_a_schema(directory: Path) -> None:
    digest = digest_raw_shard(directory)
    assert digest == opened(directory).digest
    assert digest.startswith("sha256:")
    assert len(digest) == 7 + 64


def test_the_digest_depends_on_every_byte_name_and_boundary(directory: Path) -> None:
    digests = {digest_raw_shard(directory)}
    first, second = directory / "data_batch_1.bin", directory / "data_batch_2.bin"

    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    digests.add(digest_raw_shard(directory))

    # The same bytes in the same order, but with the boundary one record later.
    tail = second.read_bytes()
    first.write_bytes(content + tail[:RECORD])
    second.write_bytes(tail[RECORD:])
    digests.add(digest_raw_shard(directory))

    first.write_bytes(content)
    second.write_bytes(tail)
    second.rename(directory / "data_batch_3.bin")
    digests.add(digest_raw_shard(directory))
    assert len(digests) == 4


def test_a_file_changed_after_opening_changes_nothing(directory: Path) -> None:
    shard = opened(directory)
    (directory / "data_batch_1.bin").write_bytes(records(3, start=7))
    assert shard.split("train").read(np.array([0]))["label"].tolist() == [0]
    assert shard.digest != digest_raw_shard(directory)


def test_the_representation_shows_no_data(directory: Path) -> None:
    shard = opened(directory)
    assert repr(shard) == f"RawShard(train: 5, held-out: 4, {shard.digest})"


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data directory") as caught:
        opened(tmp_path / "absent")
    assert caught.value.code == "data-missing"


@pytest.mark.parametrize("pattern", ["data_batch*.bin", "test_batch*.bin"])
def test_a_missing_split_is_refused_by_its_pattern(
    directory: Path, pattern: str
) -> None:
    for path in directory.glob(pattern):
        path.unlink()
    with pytest.raises(ConfigError) as caught:
        digest_raw_shard(directory)
    assert caught.value.code == "data-missing"
    assert pattern in str(caught.value)


def test_an_empty_split_is_refused(directory: Path) -> None:
    (directory / "test_batch.bin").write_bytes(b"")
    with pytest.raises(StorageError, match="held-out") as caught:
        opened(directory)
    assert caught.value.code == "data-empty"


def test_a_truncated_file_is_refused_by_name_and_size(directory: Path) -> None:
    (directory / "data_batch_2.bin").write_bytes(records(2)[:-1])
    with pytest.raises(StorageError) as caught:
        opened(directory)
    assert caught.value.code == "data-truncated"
    assert "data_batch_2.bin" in caught.value.what
    assert caught.value.expected == f"a multiple of {RECORD} bytes"
    assert caught.value.got == f"{2 * RECORD - 1} bytes"


def test_a_label_out_of_range_is_refused_by_file_and_record(directory: Path) -> None:
    content = bytearray(records(2))
    content[RECORD] = 10
    (directory / "data_batch_2.bin").write_bytes(content)
    with pytest.raises(StorageError) as caught:
        opened(directory)
    assert caught.value.code == "data-label-out-of-range"
    assert "data_batch_2.bin: record 1 has a label" in caught.value.what
    assert (caught.value.expected, caught.value.got) == ("0 to 9", "10")


def test_a_negative_integer_is_below_no_bound(tmp_path: Path) -> None:
    schema = Schema(fields=(Field(name="item", dtype="int8", shape=(2,), below=5),))
    (tmp_path / "data_batch.bin").write_bytes(b"\x00\x04\x01\xff")
    (tmp_path / "test_batch.bin").write_bytes(b"\x00\x00")
    with pytest.raises(StorageError, match="record 1") as caught:
        opened(tmp_path, schema)
    assert caught.value.got == "-1"


def test_a_file_that_cannot_be_read_is_a_storage_error(directory: Path) -> None:
    (directory / "data_batch_9.bin").mkdir()
    with pytest.raises(StorageError) as caught:
        digest_raw_shard(directory)
    assert caught.value.code == "data-unreadable"


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (LABEL, LABEL),
        (Field(name="label", dtype="nonsense"),),
        (Field(name="label", dtype="object"),),
        (Field(name="label", dtype="uint8", shape=(0,)),),
    ],
)
def test_a_schema_no_record_can_follow_is_refused(
    directory: Path, fields: tuple[Field, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(directory, Schema(fields=fields))
    assert caught.value.code == "schema-invalid"
