from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cloister.errors import ConfigError, StorageError
from cloister.storage.raw_shard import digest_raw_shard, open_raw_shard
from cloister.storage.records import Field, Schema
from cloister.workloads.digits import DIGIT_SIZE
from cloister.workloads.shards import (
    CIFAR_RECORD_BYTES,
    split_cifar,
    write_digit_shards,
)

DIGIT_SCHEMA = Schema(
    fields=(
        Field(name="label", dtype="uint8", below=10),
        Field(name="image", dtype="uint8", shape=(3, DIGIT_SIZE, DIGIT_SIZE)),
    )
)


def rows(directory: Path, name: str, size: int) -> Counter[bytes]:
    content = (directory / name).read_bytes()
    return Counter(content[at : at + size] for at in range(0, len(content), size))


def write_cifar(directory: Path, counts: dict[str, int]) -> Path:
    directory.mkdir()
    start = 0
    for name, count in counts.items():
        table = np.zeros((count, CIFAR_RECORD_BYTES), np.uint8)
        table[:, 0] = np.arange(count) % 10
        number = np.arange(start, start + count)
        table[:, 1], table[:, 2] = number % 256, number // 256
        (directory / name).write_bytes(table.tobytes())
        start += count
    return directory


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("digits")
    directories = [base / "alice", base / "bob"]
    write_digit_shards(directories, seed=7)
    return directories


def test_digit_shards_are_disjoint_and_complete(digits: list[Path]) -> None:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import

    size = DIGIT_SCHEMA.record_bytes
    expected: Counter[bytes] = Counter()
    bundled = load_digits()
    for image, label in zip(bundled.images, bundled.target, strict=True):
        plane = bytes(int(value) * 15 for value in image.ravel())
        expected[bytes([int(label)]) + plane * 3] += 1
    found: Counter[bytes] = Counter()
    for directory in digits:
        for name in ("data_batch_1.bin", "test_batch.bin"):
            found += rows(directory, name, size)
    # Equal counts of equal records: nothing is lost, and nothing is given twice.
    assert found == expected
    assert found.total() == 1797


def test_digit_shards_are_of_even_size_with_a_fifth_held_out(
    digits: list[Path],
) -> None:
    shards = [open_raw_shard(directory, DIGIT_SCHEMA) for directory in digits]
    assert [len(shard.split("train")) for shard in shards] == [719, 719]
    assert [len(shard.split("held-out")) for shard in shards] == [180, 179]


def test_every_party_gets_every_digit(digits: list[Path]) -> None:
    for directory in digits:
        train = open_raw_shard(directory, DIGIT_SCHEMA).split("train")
        labels = train.read(np.arange(len(train)))["label"]
        assert np.bincount(labels.astype(np.int64)).min() > 40


def test_the_seed_decides_the_shards_but_not_what_is_held_out(
    tmp_path: Path, digits: list[Path]
) -> None:
    again = [tmp_path / "alice", tmp_path / "bob"]
    write_digit_shards(again, seed=7)
    assert list(map(digest_raw_shard, again)) == list(map(digest_raw_shard, digits))

    three = [tmp_path / "x", tmp_path / "y", tmp_path / "z"]
    write_digit_shards(three, seed=8)
    size = DIGIT_SCHEMA.record_bytes
    held_out = [
        sum((rows(d, "test_batch.bin", size) for d in group), Counter[bytes]())
        for group in (digits, three)
    ]
    assert held_out[0] == held_out[1]


def test_without_scikit_learn_the_digits_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError) as caught:
        write_digit_shards([tmp_path / "a"], seed=0)
    assert caught.value.code == "digits-missing"


def test_cifar_shards_are_disjoint_complete_and_even(tmp_path: Path) -> None:
    names = {"data_batch_1.bin": 1501, "data_batch_2.bin": 700, "test_batch.bin": 5}
    source = write_cifar(tmp_path / "cifar", names)
    shards = [tmp_path / name for name in ("a", "b", "c")]
    split_cifar(source, shards)
    for name in names:
        dealt = [rows(shard, name, CIFAR_RECORD_BYTES) for shard in shards]
        assert sum(dealt, Counter[bytes]()) == rows(source, name, CIFAR_RECORD_BYTES)
    train = [
        sum(rows(s, n, CIFAR_RECORD_BYTES).total() for n in list(names)[:2])
        for s in shards
    ]
    assert train == [734, 734, 733]
    left = [path.name for shard in shards for path in shard.iterdir()]
    assert Counter(left) == dict.fromkeys(names, 3)


def test_missing_cifar_files_are_refused(tmp_path: Path) -> None:
    source = write_cifar(tmp_path / "cifar", {"data_batch_1.bin": 2})
    for directory in (source, tmp_path / "absent"):
        with pytest.raises(ConfigError) as caught:
            split_cifar(directory, [tmp_path / "a"])
        assert caught.value.code == "data-missing"
    assert not (tmp_path / "a").exists()


def test_a_truncated_cifar_file_is_refused(tmp_path: Path) -> None:
    source = write_cifar(
        tmp_path / "cifar", {"data_batch_1.bin": 2, "test_batch.bin": 2}
    )
    with (source / "data_batch_1.bin").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(StorageError) as caught:
        split_cifar(source, [tmp_path / "a"])
    assert caught.value.code == "data-truncated"
    assert caught.value.got == "6147 bytes"


def test_fewer_records_than_parties_are_refused(tmp_path: Path) -> None:
    source = write_cifar(
        tmp_path / "cifar", {"data_batch_1.bin": 1, "test_batch.bin": 2}
    )
    with pytest.raises(ConfigError) as caught:
        split_cifar(source, [tmp_path / "a", tmp_path / "b"])
    assert caught.value.code == "data-too-few"


def test_existing_data_is_never_overwritten(tmp_path: Path) -> None:
    source = write_cifar(
        tmp_path / "cifar", {"data_batch_1.bin": 2, "test_batch.bin": 2}
    )
    before = digest_raw_shard(source)
    with pytest.raises(ConfigError) as caught:
        split_cifar(source, [tmp_path / "a", source])
    assert caught.value.code == "data-exists"
    assert digest_raw_shard(source) == before


def test_each_party_needs_a_directory_of_its_own(tmp_path: Path) -> None:
    for directories in ([], [tmp_path / "a", tmp_path / "b" / ".." / "a"]):
        with pytest.raises(ConfigError) as caught:
            write_digit_shards(directories, seed=0)
        assert caught.value.code == "shards-invalid"


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    source = write_cifar(
        tmp_path / "cifar", {"data_batch_1.bin": 2, "test_batch.bin": 2}
    )
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError) as caught:
        split_cifar(source, [tmp_path / "a", tmp_path / "file" / "b"])
    assert caught.value.code == "data-unwritable"
    assert not list((tmp_path / "a").iterdir())
