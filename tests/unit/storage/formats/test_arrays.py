from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.read_streams import counts, read_stream
from typing_extensions import override

from cloister.errors import ConfigError, StorageError
from cloister.storage.formats import open_format
from cloister.storage.records import Field

DTYPES = ["u1", "<i2", ">i4", ">u8", "<f2", ">f4", "<f8"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(DTYPES), st.sampled_from("CF"), st.integers(1, 4))
def test_any_order_of_bytes_and_of_axes_is_read_alike(
    tmp_path: Path, dtype: str, order: str, count: int
) -> None:
    values = np.arange(count * 6).reshape(count, 2, 3).astype(dtype)
    np.save(tmp_path / "x.npy", np.array(values, order=order))  # type: ignore[call-overload]
    stream = open_format("arrays", tmp_path, held_out=0)
    assert stream.schema.fields == (
        Field(name="x", dtype=values.dtype.name, shape=(2, 3)),
    )
    assert read_stream(stream)["train"]["x"].tolist() == values.tolist()


def test_fields_lie_in_alphabetical_order(tmp_path: Path) -> None:
    for name in ("label", "features", "features-2", "b.c"):
        np.save(tmp_path / f"{name}.npy", np.zeros(3, np.uint8))
    stream = open_format("arrays", tmp_path, held_out=1)
    assert [field.name for field in stream.schema.fields] == [
        "b.c",
        "features",
        "features-2",
        "label",
    ]
    assert (stream.format, stream.total) == ("arrays", 3)
    assert counts(stream) == {"train": 2, "held-out": 1}


def test_directories_tell_the_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("held-out", 2)):
        (tmp_path / split).mkdir()
        np.save(tmp_path / split / "x.npy", np.full(count, count, np.int16))
    read = read_stream(open_format("arrays", tmp_path))
    assert read["train"]["x"].tolist() == [3, 3, 3]
    assert read["held-out"]["x"].tolist() == [2, 2]


def test_large_records_come_in_small_chunks(tmp_path: Path) -> None:
    np.lib.format.open_memmap(
        tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(5, 12 << 20)
    )
    chunks = open_format("arrays", tmp_path, held_out=0).chunks()
    assert [len(chunk) for chunk in chunks] == [1] * 5


def test_arrays_beside_the_splits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "x.npy", np.zeros(3))
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ConfigError) as caught:
        open_format("arrays", tmp_path)
    assert caught.value.code == "data-ambiguous"


@pytest.mark.parametrize(
    ("name", "array"),
    [("x", np.zeros(2, np.float32)), ("x", np.zeros((2, 1))), ("y", np.zeros(2))],
)
def test_splits_of_different_fields_are_refused(
    tmp_path: Path, name: str, array: NDArray[np.generic]
) -> None:
    for split, field, values in (
        ("train", "x", np.zeros(3)),
        ("held-out", name, array),
    ):
        (tmp_path / split).mkdir()
        np.save(tmp_path / split / f"{field}.npy", values)
    with pytest.raises(StorageError) as caught:
        open_format("arrays", tmp_path)
    assert caught.value.code == "data-malformed"


def test_fields_of_different_length_are_refused_with_their_lengths(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    np.save(tmp_path / "y.npy", np.zeros(4))
    with pytest.raises(StorageError) as caught:
        open_format("arrays", tmp_path, held_out=0)
    assert (caught.value.code, caught.value.got) == ("data-malformed", "x: 3, y: 4")


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "b"]),
        np.array([1j, 2j]),
        np.array([True, False]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(2, [("a", "f4")]),
        np.float64(1.0),
        np.zeros((3, 0)),
        np.zeros((0, 3)),
        np.array([{}, {}], object),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(
    tmp_path: Path, array: NDArray[np.generic]
) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(StorageError, match=r"x\.npy") as caught:
        open_format("arrays", tmp_path, held_out=0)
    assert caught.value.code == "data-malformed"


def test_a_pickle_in_an_array_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "canary"

    class Payload:
        @override
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (path,))

    np.save(tmp_path / "x.npy", np.array([Payload()], object), allow_pickle=True)
    with pytest.raises(StorageError):
        open_format("arrays", tmp_path, held_out=0)
    assert not path.exists()


def test_any_other_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(4, dtype=np.float32))
    whole = path.read_bytes()
    contents = [(whole[:size], "data-truncated") for size in range(len(whole))]
    for content, code in [*contents, (whole + b"\0", "data-malformed")]:
        path.write_bytes(content)
        with pytest.raises(StorageError, match=r"x\.npy") as caught:
            open_format("arrays", tmp_path, held_out=0)
        assert caught.value.code == code


def test_a_source_that_is_cut_while_it_is_sealed_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((8192, 64), np.float32))
    chunks = open_format("arrays", tmp_path, held_out=0).chunks()
    next(chunks)
    os.truncate(tmp_path / "x.npy", 4096)
    with pytest.raises(StorageError, match=r"x\.npy changed") as caught:
        next(chunks)
    assert caught.value.code == "data-changed"
