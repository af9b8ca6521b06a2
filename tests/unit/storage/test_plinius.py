from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.plinius_files import (
    HEADER_BYTES,
    KEY,
    RECORD_BYTES,
    PliniusFiles,
    as_floats,
    write_plinius,
)
from tests.support.read_streams import counts, read_stream

from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.storage.data_sealing import seal_data
from cloister.storage.formats.held_out import HeldOut
from cloister.storage.keys import Secret, new_key
from cloister.storage.plinius import open_plinius, read_plinius_key
from cloister.storage.record_stream import RecordStream

COUNT = 5
IMAGES = np.arange(COUNT * 784).reshape(COUNT, 28, 28).astype(np.uint8)
LABELS = np.array([5, 0, 4, 1, 9], np.uint8)
PIXELS, ONES = as_floats(IMAGES, LABELS)
PARTY = Ed25519PrivateKey.generate()


class Signer:
    @property
    def owner(self) -> str:
        return f"ed25519:{PARTY.public_key().public_bytes_raw().hex()}"

    def sign(self, message: bytes, /) -> bytes:
        return PARTY.sign(message)


@pytest.fixture
def files(tmp_path: Path) -> PliniusFiles:
    return write_plinius(tmp_path, PIXELS, ONES)


def opened(files: PliniusFiles, *, held_out: HeldOut | None = 0) -> RecordStream:
    return open_plinius(files.images, files.labels, key=Secret(KEY), held_out=held_out)


def refusal(files: PliniusFiles) -> CloisterError:
    """Seals the files, which must fail, and returns how; nothing may be left."""
    before = sorted(files.images.parent.iterdir())
    sealed = files.images.parent / "data.sealed"
    with pytest.raises((StorageError, ConfigError)) as caught:
        seal_data(opened(files), path=sealed, key=new_key(), signer=Signer())
    assert sorted(files.images.parent.iterdir()) == before
    return caught.value


def place(kind: str, index: int) -> int:
    return HEADER_BYTES[kind] + index * RECORD_BYTES[kind]


def record(path: Path, kind: str, index: int) -> bytes:
    return path.read_bytes()[place(kind, index) :][: RECORD_BYTES[kind]]


def replaced(path: Path, at: int, content: bytes) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + content + whole[at + len(content) :])


def test_the_records_come_out_as_mnist_has_them(files: PliniusFiles) -> None:
    stream = opened(files, held_out=2)
    read = read_stream(stream)
    assert (stream.format, stream.total) == ("plinius", COUNT)
    assert counts(stream) == {"train": 3, "held-out": 2}
    assert read["train"]["image"].tolist() == IMAGES[:3, None].tolist()
    assert read["held-out"]["label"].tolist() == [1, 9]


def test_every_byte_of_a_pixel_comes_through(tmp_path: Path) -> None:
    every = np.resize(np.arange(256, dtype=np.uint8), (1, 28, 28))
    for scale in (np.float32(1 / 255), np.float32(0.00392157)):
        files = write_plinius(
            tmp_path, every.reshape(1, -1) * scale, np.eye(10, dtype=np.float32)[:1]
        )
        assert (read_stream(opened(files))["train"]["image"] == every).all()


def test_imported_records_are_sealed_like_any_others(files: PliniusFiles) -> None:
    path = files.images.parent / "data.sealed"
    sealed = seal_data(opened(files), path=path, key=new_key(), signer=Signer())
    assert (sealed.manifest.train, sealed.manifest.source) == (COUNT, "plinius")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_is_refused_and_nothing_is_left(
    tmp_path: Path, data: st.DataObject
) -> None:
    files = write_plinius(tmp_path, PIXELS, ONES)
    path = data.draw(st.sampled_from([files.images, files.labels]))
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    assert str(path) in refusal(files).what or bit < 8 * 12


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_prefix_and_any_extra_byte_are_refused_and_nothing_is_left(
    tmp_path: Path, data: st.DataObject
) -> None:
    files = write_plinius(tmp_path, PIXELS, ONES)
    path = data.draw(st.sampled_from([files.images, files.labels]))
    content = path.read_bytes()
    size = data.draw(st.integers(0, len(content) + 1).filter(len(content).__ne__))
    path.write_bytes((content + b"\0")[:size])
    expected = "data-truncated" if size < len(content) else "data-malformed"
    assert refusal(files).code == expected


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_file_that_grows_while_it_is_read_is_refused(
    files: PliniusFiles, kind: str
) -> None:
    stream = opened(files)
    with getattr(files, kind).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(StorageError):
        read_stream(stream)


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("part", [0, 16, 28])
def test_the_record_whose_tag_fails_is_named(
    files: PliniusFiles, kind: str, part: int
) -> None:
    path = files.images if kind == "image" else files.labels
    at = place(kind, 3) + part
    replaced(path, at, bytes([path.read_bytes()[at] ^ 1]))
    error = refusal(files)
    assert error.code == "plinius-tag"
    assert error.what == f"{path}: the tag of {kind} 3 does not hold"


def test_another_key_opens_nothing(files: PliniusFiles) -> None:
    stream = open_plinius(files.images, files.labels, key=Secret(bytes(16)), held_out=0)
    with pytest.raises(StorageError, match="tag of image 0") as caught:
        list(stream.chunks())
    assert caught.value.code == "plinius-tag"
    assert "key" in caught.value.remedy


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_record_copied_over_another_is_refused(
    files: PliniusFiles, kind: str
) -> None:
    path = files.images if kind == "image" else files.labels
    replaced(path, place(kind, 4), record(path, kind, 1))
    error = refusal(files)
    assert (error.code, error.what) == (
        "plinius-repeated",
        f"{path}: {kind} 4 is there a second time",
    )


@pytest.mark.parametrize(
    "value", [-1.0, 1.001, 2.0, 0.5, 1e30, np.nan, np.inf, -np.inf, 1 / 510]
)
def test_a_pixel_that_is_no_255th_is_refused(tmp_path: Path, value: float) -> None:
    pixels = PIXELS.copy()
    pixels[2, 700] = value
    error = refusal(write_plinius(tmp_path, pixels, ONES))
    assert (error.code, "image 2 is no image" in error.what) == ("plinius-value", True)


@pytest.mark.parametrize(
    "ones",
    [(), (1, 1), (2,), (-1, 1, 1), (np.nan, 1), (np.inf,), (0.9999999,), (0.5, 0.5)],
)
def test_a_label_that_is_not_one_among_zeros_is_refused(
    tmp_path: Path, ones: tuple[float, ...]
) -> None:
    labels = ONES.copy()
    labels[4] = [*ones, *[0] * (10 - len(ones))]
    error = refusal(write_plinius(tmp_path, PIXELS, labels))
    assert (error.code, "label 4 is no label" in error.what) == ("plinius-value", True)


def test_images_of_another_size_are_refused(files: PliniusFiles) -> None:
    replaced(files.images, 0, struct.pack("<II", 56, 14))
    error = refusal(files)
    assert (error.code, error.got) == ("data-malformed", "56 x 14")


def test_as_many_labels_as_images_are_wanted(tmp_path: Path) -> None:
    error = refusal(write_plinius(tmp_path, PIXELS, ONES[:4]))
    assert (error.code, error.got) == ("data-malformed", "4")


def test_a_count_of_labels_like_a_gzip_file_is_read_as_a_count(tmp_path: Path) -> None:
    files = write_plinius(tmp_path, PIXELS, ONES)
    replaced(files.labels, 0, b"\x1f\x8b\x00\x00")
    assert refusal(files).got == str(0x8B1F)


@pytest.mark.parametrize("lacking", ["images", "labels"])
def test_a_missing_file_is_refused(files: PliniusFiles, lacking: str) -> None:
    getattr(files, lacking).unlink()
    assert refusal(files).code == "data-missing"


def test_how_many_are_held_out_must_be_said(files: PliniusFiles) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(files, held_out=None)
    assert caught.value.code == "held-out-unsaid"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("upper", [False, True])
def test_a_key_is_read_as_hex_digits(
    tmp_path: Path, end: bytes, *, upper: bool
) -> None:
    path = tmp_path / "key"
    digits = KEY.hex().upper() if upper else KEY.hex()
    path.write_bytes(digits.encode() + end)
    assert read_plinius_key(path) == Secret(KEY)


def test_a_key_is_read_as_raw_bytes(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for key in (KEY, b"0123456789abcdef", b"\n" * 16):
        path.write_bytes(key)
        assert read_plinius_key(path) == Secret(key)


@given(st.binary(max_size=80).filter(lambda content: len(content) != 16))
def test_any_other_key_file_is_refused_without_showing_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_plinius_key(path)
    assert caught.value.code == "plinius-key-invalid"
    assert not caught.value.got


@pytest.mark.parametrize("digits", ["00 " * 16, "0" * 31, "0" * 33, "g" * 32])
def test_digits_of_another_number_are_no_key(tmp_path: Path, digits: str) -> None:
    path = tmp_path / "key"
    path.write_text(digits)
    with pytest.raises(ConfigError) as caught:
        read_plinius_key(path)
    assert caught.value.code == "plinius-key-invalid"


def test_a_key_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    for path, code in [
        (tmp_path / "absent", "plinius-key-missing"),
        (tmp_path, "plinius-key-unreadable"),
    ]:
        with pytest.raises(ConfigError) as caught:
            read_plinius_key(path)
        assert caught.value.code == code


def test_a_key_of_another_length_is_refused_before_a_file_is_read() -> None:
    with pytest.raises(ConfigError) as caught:
        open_plinius(Path("absent"), Path("absent"), key=Secret(bytes(32)), held_out=0)
    assert caught.value.code == "plinius-key-invalid"
