from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.read_streams import counts, read_stream

from cloister.errors import StorageError
from cloister.storage.formats import open_format

RECORD = 1 + 3 * 32 * 32


def records(labels: list[int]) -> bytes:
    rows = np.zeros((len(labels), RECORD), np.uint8)
    rows[:, 0] = labels
    # The first plane of an image is all its label, the others are 0.
    rows[:, 1 : 1 + 32 * 32] = np.array(labels)[:, None]
    return rows.tobytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "data_batch_2.bin").write_bytes(records([3, 4]))
    (tmp_path / "data_batch_1.bin").write_bytes(records([0, 1, 2]))
    (tmp_path / "test_batch.bin").write_bytes(records([9]))
    (tmp_path / "batches.meta.txt").write_text("airplane\n")
    return tmp_path


def test_the_files_are_read_in_order_of_their_names(source: Path) -> None:
    stream = open_format("cifar-10", source)
    read = read_stream(stream)
    assert (stream.format, stream.total) == ("cifar-10", 6)
    assert read["train"]["label"].tolist() == [0, 1, 2, 3, 4]
    assert read["held-out"]["label"].tolist() == [9]
    # (records, planes, rows, columns): red first.
    assert (read["train"]["image"][:, 0, 5, 7] == read["train"]["label"]).all()
    assert not read["train"]["image"][:, 1:].any()


def test_a_source_without_a_test_batch_needs_a_number(source: Path) -> None:
    (source / "test_batch.bin").unlink()
    assert counts(open_format("cifar-10", source, held_out=2)) == {
        "train": 3,
        "held-out": 2,
    }


def test_a_test_batch_alone_is_a_set_to_evaluate_on(source: Path) -> None:
    for path in source.glob("data_batch*"):
        path.unlink()
    assert counts(open_format("cifar-10", source, held_out="all")) == {"held-out": 1}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 3 * RECORD - 1).filter(lambda size: size % RECORD != 0))
def test_a_file_that_ends_within_a_record_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(size))
    with pytest.raises(StorageError) as caught:
        open_format("cifar-10", tmp_path, held_out=0)
    assert caught.value.code == "data-truncated"
    assert caught.value.got == f"{size} bytes"


def test_a_file_that_changes_its_length_later_is_refused(source: Path) -> None:
    stream = open_format("cifar-10", source)
    path = source / "data_batch_1.bin"
    whole = path.read_bytes()
    for content, code in [
        (whole[:-1], "data-truncated"),
        (whole + b"\0", "data-malformed"),
    ]:
        path.write_bytes(content)
        with pytest.raises(StorageError, match=r"data_batch_1\.bin") as caught:
            read_stream(stream)
        assert caught.value.code == code


def test_a_file_that_cannot_be_read_is_named(source: Path) -> None:
    (source / "data_batch_3.bin").mkdir()
    with pytest.raises(StorageError, match=r"data_batch_3\.bin") as caught:
        read_stream(open_format("cifar-10", source))
    # A directory's own size is rarely that of whole records.
    assert caught.value.code in {"data-unreadable", "data-truncated"}


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    with path.open("wb") as file:
        file.truncate(20_000 * RECORD)  # 61 MB of zeros, which take no space
    stream = open_format("cifar-10", tmp_path, held_out=1)
    tracemalloc.start()
    try:
        total = sum(len(chunk) for chunk in stream.chunks())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 20_000
    assert peak < 10_000_000
