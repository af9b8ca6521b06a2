"""Imports the encrypted MNIST of Plinius, to be sealed anew.

All numbers are little endian. The file of images: rows, columns and count (u32 each),
then the records; the file of labels: count (u32), then the records. A record is tag
(16 bytes), nonce (12) and AES-128-GCM ciphertext, without associated data. An image is
784 float32 from 0 to 1, a label 10 float32, one of them 1.

Plinius itself goes on where a tag fails; this importer refuses the file. It cannot see
that whole records changed places, or that some were left out and the count lowered:
the format binds a record to no place. It does see one that is there twice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override

from cloister.errors import ConfigError
from cloister.storage.formats.held_out import HeldOut, SourceStream, with_held_out
from cloister.storage.formats.mnist import IMAGE_SIZE, MNIST_SCHEMA
from cloister.storage.formats.source_files import (
    malformed,
    missing,
    open_plain,
    read_exactly,
)
from cloister.storage.keys import Secret
from cloister.storage.plinius_records import (
    PliniusFile,
    decrypted,
    digits,
    pixel_bytes,
)
from cloister.storage.record_stream import Chunk, RecordStream
from cloister.storage.records import Schema

KEY_BYTES = 16
_IMAGES_HEADER = struct.Struct("<III")
_LABELS_HEADER = struct.Struct("<I")


def read_plinius_key(path: Path) -> Secret:
    """Returns the key in a file: 16 raw bytes, or 32 hex digits and perhaps a line end.

    Raises:
        ConfigError: If there is no such file (``plinius-key-missing``), it cannot be
            read (``plinius-key-unreadable``), or it holds something else
            (``plinius-key-invalid``).
    """
    try:
        with path.open("rb") as file:
            content = file.read(4 * KEY_BYTES)
    except FileNotFoundError as error:
        raise _key_error("missing", f"no key file {path}") from error
    except OSError as error:
        raise _key_error("unreadable", f"cannot read the key file {path}") from error
    if len(content) == KEY_BYTES:
        return Secret(content)
    hexadecimal = content.rstrip(b"\r\n")
    try:
        key = bytes.fromhex(hexadecimal.decode("ascii"))
    except ValueError as error:
        raise _key_error("invalid", f"{path} holds no key of Plinius") from error
    # fromhex passes over blanks, so the number of digits is checked as well.
    if len(key) != KEY_BYTES or len(hexadecimal) != 2 * KEY_BYTES:
        raise _key_error("invalid", f"{path} holds no key of Plinius")
    return Secret(key)


def open_plinius(
    images: Path, labels: Path, *, key: Secret, held_out: HeldOut | None = None
) -> RecordStream:
    """Returns the records of Plinius' encrypted files, as MNIST's.

    A tag is checked before anything of its record is used. Whoever writes the records
    must leave nothing behind if the stream raises, as `seal_data` does: the last tag
    may be the bad one.

    Args:
        images: ``enc_mnist_imgs.data``.
        labels: ``enc_mnist_labels.data``.
        key: The key that Plinius encrypted them with, 16 bytes.
        held_out: The last so many records, or ``"all"``; the files do not say it.

    Raises:
        ConfigError: If a file is missing (``data-missing``), the key has another
            length (``plinius-key-invalid``), or `held_out` is missing or too large.
        StorageError: If a file cannot be read (``data-unreadable``), its size is not
            what its header says (``data-truncated``, ``data-malformed``), or there are
            not as many labels as images (``data-malformed``). While records are read:
            if a tag fails (``plinius-tag``), a record is there twice
            (``plinius-repeated``), or it holds no image or no label
            (``plinius-value``); the message names file and record.
    """
    if len(key.reveal()) != KEY_BYTES:
        raise _key_error("invalid", "this is no key of Plinius")
    rows, columns, count = _header(images, _IMAGES_HEADER)
    if (rows, columns) != (IMAGE_SIZE, IMAGE_SIZE):
        raise malformed(
            images,
            expected=f"images of {IMAGE_SIZE} x {IMAGE_SIZE}",
            got=f"{rows} x {columns}",
        )
    (label_count,) = _header(labels, _LABELS_HEADER)
    if label_count != count:
        raise malformed(labels, expected=f"{count} labels", got=str(label_count))
    image_file = PliniusFile(
        kind="image", path=images, header_bytes=_IMAGES_HEADER.size, count=count
    )
    label_file = PliniusFile(
        kind="label", path=labels, header_bytes=_LABELS_HEADER.size, count=count
    )
    image_file.check_size()
    label_file.check_size()
    return with_held_out(_Plinius(image_file, label_file, key=key), held_out)


def _header(path: Path, header: struct.Struct) -> tuple[int, ...]:
    if not path.is_file():
        raise missing(f"no data file {path}", expected="Plinius' encrypted file")
    with open_plain(path) as file:
        return header.unpack(read_exactly(file, header.size, path=path))


class _Plinius(SourceStream):
    def __init__(
        self, images: PliniusFile, labels: PliniusFile, *, key: Secret
    ) -> None:
        self._images = images
        self._labels = labels
        self._key = key

    @property
    @override
    def format(self) -> str:
        return "plinius"

    @property
    @override
    def schema(self) -> Schema:
        return MNIST_SCHEMA

    @property
    @override
    def total(self) -> int:
        return self._images.count

    @property
    @override
    def tells_splits(self) -> bool:
        return False

    @override
    def chunks(self) -> Iterator[Chunk]:
        images = decrypted(self._images, key=self._key)
        labels = decrypted(self._labels, key=self._key)
        for (first, pixels), (_, ones) in zip(images, labels, strict=True):
            image = pixel_bytes(pixels, self._images, first=first)
            label = digits(ones, self._labels, first=first)
            yield Chunk(split="train", columns={"label": label, "image": image})


def _key_error(what: str, message: str) -> ConfigError:
    return ConfigError(
        message,
        code=f"plinius-key-{what}",
        expected=f"{KEY_BYTES} raw bytes or {2 * KEY_BYTES} hex digits",
        remedy="Give the file that holds the key of Plinius' data.",
    )
