from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.read_streams import counts

from cloister.errors import CloisterError, ConfigError
from cloister.storage.formats import FORMATS, HeldOut, open_format

MNIST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def test_the_formats_are_four_by_name() -> None:
    assert list(FORMATS) == ["cifar-10", "mnist", "criteo", "arrays"]


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'parquet'") as caught:
        open_format("parquet", tmp_path)
    assert caught.value.code == "data-format-unknown"
    assert all(name in caught.value.expected for name in FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_source_that_is_not_there_is_refused_by_its_path(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="absent") as caught:
        open_format(name, tmp_path / "absent", held_out="all")
    assert caught.value.code == "data-missing"


@pytest.mark.parametrize("name", ["cifar-10", "mnist", "arrays"])
def test_a_directory_without_files_of_the_format_is_refused(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "readme.txt").write_text("no record")
    with pytest.raises(ConfigError) as caught:
        open_format(name, tmp_path, held_out="all")
    assert caught.value.code == "data-missing"


def test_a_stream_is_read_again_from_the_start(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(5.0))
    stream = open_format("arrays", tmp_path, held_out=2)
    expected = {"train": 3, "held-out": 2}
    assert [counts(stream), counts(stream)] == [expected, expected]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [
            ("cifar-10", ("data_batch_1.bin", "test_batch.bin")),
            ("mnist", MNIST_FILES),
            ("criteo", ("train.txt",)),
            ("arrays", ("x.npy", "y.npy")),
        ]
    ),
    st.lists(
        st.binary(max_size=64)
        | st.sampled_from(
            [
                b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
                b"\0\0\x08\x03\xff\xff\xff\xff\0\0\0\x1c\0\0\0\x1c",
                b"\0\0\x08\x01\xff\xff\xff\xff",
                b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'}",
                b"\x93NUMPY\x01\x00\x3d\x00{'descr': '<u1', 'fortran_order': False,"
                b" 'shape': (10**99,)}",
                b"\x93NUMPY\x01\x00\x3e\x00{'descr': '<u1', 'fortran_order': False,"
                b" 'shape': (-4, 2),}\n12345678",
            ]
        ),
        min_size=2,
        max_size=2,
    ),
    st.sampled_from([None, 0, 1, "all"]),
)
def test_any_bytes_are_records_or_one_of_our_errors(
    tmp_path: Path,
    source: tuple[str, tuple[str, ...]],
    contents: list[bytes],
    held_out: HeldOut | None,
) -> None:
    name, files = source
    for file, content in zip(files, contents, strict=False):
        (tmp_path / file).write_bytes(content)
    path = tmp_path / files[0] if name == "criteo" else tmp_path
    # Anything but our error fails the test; so does a stream that says a wrong total.
    with contextlib.suppress(CloisterError):
        stream = open_format(name, path, held_out=held_out)
        assert sum(counts(stream).values()) == (stream.total or 0)
    for file in files:
        (tmp_path / file).unlink(missing_ok=True)
