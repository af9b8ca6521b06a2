from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.read_streams import counts, read_stream

from cloister.errors import StorageError
from cloister.storage.formats import open_format
from cloister.storage.formats.criteo import CRITEO_SCHEMA

INTEGERS = st.none() | st.integers(-(2**31), 2**31 - 1)
CATEGORIES = st.none() | st.integers(0, 2**32 - 1)
ROWS = st.tuples(
    st.integers(0, 1),
    st.lists(INTEGERS, min_size=13, max_size=13),
    st.lists(CATEGORIES, min_size=26, max_size=26),
)
Row = tuple[int, list[int | None], list[int | None]]
GOOD: Row = (1, [None, -3, 0, *range(10)], [None, *range(25)])


def line_of(row: Row) -> str:
    label, integers, categories = row
    values = [str(label)]
    values += ["" if value is None else str(value) for value in integers]
    values += ["" if value is None else f"{value:08x}" for value in categories]
    return "\t".join(values)


def write(path: Path, *rows: Row, end: str = "\n") -> Path:
    path.write_bytes("".join(line_of(row) + end for row in rows).encode())
    return path


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]))
def test_what_is_written_is_read_and_missing_values_are_told_apart(
    tmp_path: Path, rows: list[Row], end: str
) -> None:
    path = write(tmp_path / "train.txt", *rows, end=end)
    read = read_stream(open_format("criteo", path, held_out=0))["train"]
    assert read["label"].tolist() == [label for label, _, _ in rows]
    integers = [[value or 0 for value in values] for _, values, _ in rows]
    assert read["integers"].tolist() == integers
    categories = [[value or 0 for value in values] for _, _, values in rows]
    assert read["categories"].tolist() == categories
    present = [[int(v is not None) for v in i + c] for _, i, c in rows]
    assert read["present"].tolist() == present


def test_the_schema_is_label_integers_categories_present() -> None:
    assert [(f.name, f.dtype, f.shape, f.below) for f in CRITEO_SCHEMA.fields] == [
        ("label", "uint8", (), 2),
        ("integers", "int32", (13,), None),
        ("categories", "uint32", (26,), None),
        ("present", "uint8", (39,), 2),
    ]


def test_the_last_line_needs_no_end_and_the_file_may_be_packed(tmp_path: Path) -> None:
    path = tmp_path / "train.txt.gz"
    text = "\n".join(line_of(GOOD) for _ in range(2050))
    path.write_bytes(gzip.compress(text.encode()))
    stream = open_format("criteo", path, held_out=50)
    assert (stream.format, stream.total) == ("criteo", None)
    assert counts(stream) == {"train": 2000, "held-out": 50}
    assert np.unique(read_stream(stream)["train"]["integers"][:, 1]) == [-3]


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("", "1 columns in line 3"),
        (line_of(GOOD).partition("\t")[2], "39 columns in line 3"),
        (line_of(GOOD) + "\t", "41 columns in line 3"),
        ("2" + line_of(GOOD)[1:], "column 1 of line 3"),
        (line_of(GOOD).replace("-3", "+3"), "column 3 of line 3"),
        (line_of(GOOD).replace("-3", "3_0"), "column 3 of line 3"),
        (line_of(GOOD).replace("-3", " 3"), "column 3 of line 3"),
        (line_of(GOOD).replace("-3", "2147483648"), "more in line 3"),
        (line_of(GOOD).replace("0000000a", "000000a"), "column 26 of line 3"),
        (line_of(GOOD).replace("0000000a", "0000000g"), "column 26 of line 3"),
        (line_of(GOOD) + "\r", "column 40 of line 3"),
        ("label\t" + line_of(GOOD)[2:], "column 1 of line 3"),
    ],
)
def test_a_line_of_another_form_is_refused_by_its_number(
    tmp_path: Path, line: str, got: str
) -> None:
    path = write(tmp_path / "train.txt", GOOD, GOOD)
    with path.open("ab") as file:
        file.write((line + "\r\n").encode())
    with pytest.raises(StorageError, match=r"train\.txt") as caught:
        read_stream(open_format("criteo", path, held_out=1))
    assert caught.value.code == "data-malformed"
    assert caught.value.got == got


def test_no_value_of_a_refused_line_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(line_of(GOOD).replace("-3", "canary") + "\n")
    with pytest.raises(StorageError) as caught:
        read_stream(open_format("criteo", path, held_out=0))
    assert "canary" not in str(caught.value)


def test_a_file_without_lines_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StorageError) as caught:
        read_stream(open_format("criteo", path, held_out=0))
    assert caught.value.got == "a longer line 1"
