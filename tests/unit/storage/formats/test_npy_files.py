from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloister.errors import StorageError
from cloister.storage.formats.npy_files import open_rows, read_header

RECORD = b"patient Smith 1950 HIV+;"
VALUES = np.frombuffer(RECORD * 40, "<f4").reshape(-1, 6)


def saved(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def headed(header: bytes, values: bytes, *, version: int = 1) -> bytes:
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + values


def read_whole(path: Path, content: bytes) -> NDArray[np.generic]:
    path.write_bytes(content)
    npy = read_header(path)
    with open_rows(npy) as rows:
        return rows.read(0, len(npy))


def refusal(path: Path, content: bytes) -> StorageError:
    """Returns the error, of which no part may hold a value of a record."""
    with pytest.raises(StorageError, match=r"x\.npy") as caught:
        read_whole(path, content)
    error: BaseException | None = caught.value
    while error is not None:
        assert not any(word in f"{error!r} {error}" for word in ("Smith", "HIV"))
        error = error.__cause__ or error.__context__
    return caught.value


WHOLE = saved(VALUES)
HEADER_BYTES = len(WHOLE) - VALUES.nbytes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
@example(9, 1)  # records become a part of the header
@example(10, ord("{") ^ ord("["))
@example(21, ord("<") ^ ord(">"))
def test_a_flipped_byte_of_the_header_is_refused_or_says_as_many_bytes(
    tmp_path: Path, at: int, flipped: int
) -> None:
    content = bytearray(WHOLE)
    content[at] ^= flipped
    try:
        read = read_whole(tmp_path / "x.npy", bytes(content))
    except StorageError:
        refusal(tmp_path / "x.npy", bytes(content))
    else:
        # A type or an order of bytes that is as good as the first.
        assert read.shape == VALUES.shape
        assert VALUES.tobytes() in {read.tobytes(), read.byteswap().tobytes()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE) - 1))
def test_any_prefix_is_refused_as_cut_off(tmp_path: Path, size: int) -> None:
    assert refusal(tmp_path / "x.npy", WHOLE[:size]).code == "data-truncated"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(
            b"{ } ( ) [ , : 'descr': 'fortran_order': 'shape': '<f4', False, True, (40,"
            b" 6) 6), 9 -1 \n".split(b" ")
        )
        | st.binary(max_size=4)
    ),
    st.sampled_from([1, 2, 3]),
)
def test_any_header_is_an_array_or_our_error(
    tmp_path: Path, parts: list[bytes], version: int
) -> None:
    content = headed(b" ".join(parts), RECORD * 40, version=version)
    try:
        assert read_whole(tmp_path / "x.npy", content).tobytes() == RECORD * 40
    except StorageError:
        refusal(tmp_path / "x.npy", content)


@pytest.mark.parametrize(
    "header",
    [
        b"(" * 30000,
        b"-" * 5000 + b"1",
        b"{" + b" " * 60000 + b"}",
        b"{'descr': (",
        b"  {'descr'\n 3",
        b"{[]: 1}",
        b"['" + RECORD + b"']",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (40, 6), 'more': 1}",
        b"{'descr': '<f4', 'fortran_order': False, 'descr': '<f4', }",
        b"{'descr': '<f4' 'fortran_order': False, 'shape': (40, 6)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (240)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-40, -6), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2**3, 30), }",
        b"{'descr': '<f4', 'fortran_order': 0, 'shape': (40, 6), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1, " * 18 + b"), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1, " * 99 + b"), }",
        b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (240,), }",
        b"{'descr': 'HIV', 'fortran_order': False, 'shape': (240,), }",
        b"{'descr': '<f16', 'fortran_order': False, 'shape': (60,), }",
        b"{'descr': 'H1950', 'fortran_order': False, 'shape': (240,), }",
    ],
)
def test_a_header_of_another_form_is_refused(tmp_path: Path, header: bytes) -> None:
    content = headed(header, RECORD * 40)
    assert refusal(tmp_path / "x.npy", content).code == "data-malformed"


def test_a_shape_of_more_values_than_bytes_is_refused(tmp_path: Path) -> None:
    sizes = b"9223372036854775807, 9223372036854775807"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + sizes + b"), }"
    error = refusal(tmp_path / "x.npy", headed(header, RECORD))
    assert error.code == "data-truncated"


def test_a_header_longer_than_any_is_refused_unread(tmp_path: Path) -> None:
    error = refusal(tmp_path / "x.npy", headed(b" " * 65537, b"", version=2))
    assert (error.code, error.got) == ("data-malformed", "more")


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (40L, 6L), }",
        b'{"shape":(40,6),"fortran_order":False,"descr":"<f4"}',
    ],
    ids=["python 2", "another writer"],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_of_other_writers_are_read(
    tmp_path: Path, header: bytes, version: int
) -> None:
    content = headed(header, VALUES.tobytes(), version=version)
    assert read_whole(tmp_path / "x.npy", content).tobytes() == VALUES.tobytes()


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros(2, bool), "truth values"),
        (np.array(["a"]), "text"),
        (np.array([1j]), "complex numbers"),
        (np.array(["2020-01-01"], "M8[D]"), "a header of another form"),
        (np.array([{}], object), "Python objects"),
        (np.zeros(2, [("a", "f4")]), "a header of another form"),
        (np.float64(1.0), "a single value"),
        (np.zeros((3, 0)), "none"),
    ],
)
def test_a_refusal_says_of_what_kind_the_values_are(
    tmp_path: Path, array: NDArray[np.generic], got: str
) -> None:
    assert refusal(tmp_path / "x.npy", saved(array)).got == got


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["u1", "<i2", ">i4", ">f4", "<f8"]),
    st.sampled_from("CF"),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_any_rows_are_read_into_memory_of_their_own(
    tmp_path: Path, dtype: str, order: str, shape: list[int], first: int, count: int
) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    path = tmp_path / "x.npy"
    np.save(path, np.array(values, order=order))  # type: ignore[call-overload]
    npy = read_header(path)
    first = min(first, len(npy) - 1)
    with open_rows(npy) as rows:
        read = rows.read(first, first + count)
    assert read.flags.c_contiguous
    assert read.flags.writeable
    assert read.dtype.isnative
    assert read.tolist() == values[first : first + count].tolist()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_that_is_cut_while_it_is_read_is_refused(
    tmp_path: Path, order: str
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((8192, 64), np.float32, order=order))  # type: ignore[call-overload]
    with open_rows(read_header(path)) as rows:
        rows.read(0, 1024)
        os.truncate(path, 4096)
        with pytest.raises(StorageError, match=r"x\.npy changed") as caught:
            rows.read(1024, 2048)
    assert caught.value.code == "data-changed"


def test_a_file_that_is_another_when_its_rows_are_read_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((4, 2)))
    npy = read_header(path)
    np.save(path, np.zeros((5, 2)))
    with (
        pytest.raises(StorageError, match=r"x\.npy changed") as caught,
        open_rows(npy),
    ):
        pass
    assert caught.value.code == "data-changed"
