from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.read_streams import counts, read_stream

from cloister.errors import ConfigError, StorageError
from cloister.storage.formats import open_format

PIXELS = 28 * 28


def images(count: int, *, rows: int = 28, magic: int = 0x803) -> bytes:
    numbers = np.arange(count, dtype=np.uint8).repeat(PIXELS)
    return struct.pack(">IIII", magic, count, rows, 28) + numbers.tobytes()


def labels(count: int, *, magic: int = 0x801) -> bytes:
    numbers = np.arange(count, dtype=np.uint8) % 10
    return struct.pack(">II", magic, count) + numbers.tobytes()


def write_pair(source: Path, prefix: str, count: int, *, packed: bool = False) -> None:
    pack = gzip.compress if packed else bytes
    end = ".gz" if packed else ""
    (source / f"{prefix}-images-idx3-ubyte{end}").write_bytes(pack(images(count)))
    (source / f"{prefix}-labels-idx1-ubyte{end}").write_bytes(pack(labels(count)))


@pytest.mark.parametrize("packed", [False, True])
def test_both_pairs_are_the_two_splits(tmp_path: Path, *, packed: bool) -> None:
    write_pair(tmp_path, "train", 12, packed=packed)
    write_pair(tmp_path, "t10k", 3, packed=not packed)
    stream = open_format("mnist", tmp_path)
    read = read_stream(stream)
    assert (stream.format, stream.total) == ("mnist", 15)
    assert read["train"]["label"].tolist() == [*range(10), 0, 1]
    assert read["train"]["image"].shape == (12, 1, 28, 28)
    assert (read["train"]["image"][:, 0, 27, 27] == np.arange(12)).all()
    assert len(read["held-out"]["label"]) == 3


@pytest.mark.parametrize("prefix", ["train", "t10k"])
def test_either_pair_alone_is_enough_with_a_number(tmp_path: Path, prefix: str) -> None:
    write_pair(tmp_path, prefix, 5)
    assert counts(open_format("mnist", tmp_path, held_out=2)) == {
        "train": 3,
        "held-out": 2,
    }
    with pytest.raises(ConfigError) as caught:
        open_format("mnist", tmp_path)
    assert caught.value.code == "held-out-unsaid"


def test_names_with_a_dot_are_found_as_well(tmp_path: Path) -> None:
    (tmp_path / "train-images.idx3-ubyte").write_bytes(images(2))
    (tmp_path / "train-labels.idx1-ubyte").write_bytes(labels(2))
    assert counts(open_format("mnist", tmp_path, held_out=0)) == {"train": 2}


def test_more_records_than_a_chunk_come_in_several(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", 2050)
    chunks = list(open_format("mnist", tmp_path, held_out=1).chunks())
    assert [(chunk.split, len(chunk)) for chunk in chunks] == [
        ("train", 1024),
        ("train", 1024),
        ("train", 1),
        ("held-out", 1),
    ]


def test_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", 2)
    write_pair(tmp_path, "train", 2, packed=True)
    with pytest.raises(ConfigError) as caught:
        open_format("mnist", tmp_path, held_out=0)
    assert caught.value.code == "data-ambiguous"


@pytest.mark.parametrize(
    ("half", "lacking"), [("images", "images-idx3"), ("labels", "labels-idx1")]
)
def test_half_a_pair_is_refused(tmp_path: Path, half: str, lacking: str) -> None:
    write_pair(tmp_path, "t10k", 2)
    (tmp_path / f"t10k-{lacking}-ubyte").unlink()
    with pytest.raises(ConfigError, match=half) as caught:
        open_format("mnist", tmp_path, held_out=0)
    assert caught.value.code == "data-missing"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("images-idx3", images(3, rows=32)),
        ("images-idx3", images(3, magic=0x801)),
        ("images-idx3", images(2)),
        ("images-idx3", images(3) + b"\0"),
        ("labels-idx1", labels(3, magic=0x803)),
        ("labels-idx1", labels(4)),
        ("labels-idx1", labels(3) + b"\0"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_another_header_or_bytes_behind_the_records_are_refused(
    tmp_path: Path, file: str, content: bytes, *, packed: bool
) -> None:
    write_pair(tmp_path, "train", 3, packed=packed)
    path = tmp_path / f"train-{file}-ubyte{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(StorageError, match=r"train-") as caught:
        read_stream(open_format("mnist", tmp_path, held_out=0))
    assert caught.value.code == "data-malformed"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(["images-idx3", "labels-idx1"]),
    packed=st.booleans(),
    data=st.data(),
)
def test_any_prefix_is_refused(
    tmp_path: Path, file: str, *, packed: bool, data: st.DataObject
) -> None:
    write_pair(tmp_path, "train", 3, packed=packed)
    path = tmp_path / f"train-{file}-ubyte{'.gz' if packed else ''}"
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(StorageError, match=r"train-") as caught:
        read_stream(open_format("mnist", tmp_path, held_out=0))
    assert caught.value.code == "data-truncated"
    for left in tmp_path.iterdir():
        left.unlink()


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", 3, packed=True)
    # Both files are open at that moment; the message names the right one.
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # its checksum
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"images-idx3-ubyte\.gz") as caught:
        read_stream(open_format("mnist", tmp_path, held_out=0))
    assert caught.value.code == "data-truncated"


def test_a_packed_source_is_never_unpacked_whole(tmp_path: Path) -> None:
    count = 20_000
    header = struct.pack(">IIII", 0x803, count, 28, 28)
    content = gzip.compress(header + bytes(count * PIXELS), compresslevel=1)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(
        struct.pack(">II", 0x801, count) + bytes(count)
    )
    stream = open_format("mnist", tmp_path, held_out=0)
    tracemalloc.start()
    try:
        total = sum(len(chunk) for chunk in stream.chunks())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == count
    assert peak < 5_000_000
    assert len(list(tmp_path.iterdir())) == 2
