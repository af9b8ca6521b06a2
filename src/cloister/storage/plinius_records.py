"""The records of one file of Plinius: tag, nonce, ciphertext; opened one by one.

A record is AES-128-GCM over little-endian float32 without associated data. This module
turns them into MNIST's bytes; what the files around them are is in `plinius`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from cloister.errors import StorageError
from cloister.storage.formats.mnist import CLASSES, IMAGE_SIZE
from cloister.storage.formats.source_files import (
    expect_end,
    open_plain,
    read_exactly,
    reading,
)
from cloister.storage.keys import Secret
from cloister.storage.record_stream import CHUNK_RECORDS

_TAG_BYTES = 16
_NONCE_BYTES = 12
_BODY_AT = _TAG_BYTES + _NONCE_BYTES
_FLOATS = np.dtype("<f4")
_VALUES = {"image": IMAGE_SIZE * IMAGE_SIZE, "label": CLASSES}
# Plinius divides bytes by 255 in float32; no rounding of that moves them further.
_PIXEL_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class PliniusFile:
    """One of the two files.

    Attributes:
        kind: What its records are.
        path: Where it lies.
        header_bytes: Before its first record.
        count: Records.
    """

    kind: Literal["image", "label"]
    path: Path
    header_bytes: int
    count: int

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return _BODY_AT + _VALUES[self.kind] * _FLOATS.itemsize

    def check_size(self) -> None:
        """Returns if the file holds its records and nothing else.

        Raises:
            StorageError: If it is shorter (``data-truncated``), longer
                (``data-malformed``), or cannot be read (``data-unreadable``).
        """
        with reading(self.path):
            size = self.path.stat().st_size
        expected = self.header_bytes + self.count * self.record_bytes
        if size != expected:
            raise StorageError(
                f"{self.path} is {'cut off' if size < expected else 'too long'}",
                code="data-truncated" if size < expected else "data-malformed",
                expected=f"{expected} bytes for {self.count} records",
                got=str(size),
                remedy="Put the file together again from its parts.",
            )


def decrypted(
    file: PliniusFile, *, key: Secret
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yields the values of some records, and how many came before them.

    The values are (records, 784) of images, (records, 10) of labels.

    Raises:
        StorageError: If a tag fails (``plinius-tag``), a record is there twice
            (``plinius-repeated``), or the file cannot be read whole.
    """
    cipher = AESGCM(key.reveal())
    nonces: set[bytes] = set()
    with open_plain(file.path) as source:
        read_exactly(source, file.header_bytes, path=file.path)
        for first in range(0, file.count, CHUNK_RECORDS):
            rows = min(CHUNK_RECORDS, file.count - first)
            values = np.empty((rows, _VALUES[file.kind]), np.float32)
            for row in range(rows):
                record = read_exactly(source, file.record_bytes, path=file.path)
                content = _open_record(cipher, record, file, first + row)
                _check_new(nonces, record, file, first + row)
                values[row] = np.frombuffer(content, _FLOATS)
            yield first, values
        expect_end(source, path=file.path)


def pixel_bytes(
    pixels: NDArray[np.float32], file: PliniusFile, *, first: int
) -> NDArray[np.uint8]:
    """Returns images as bytes: (records, 1, 28, 28).

    Args:
        pixels: (records, 784), each k / 255 for a whole k from 0 to 255.
        file: Where they are from.
        first: Number of the first of them.

    Raises:
        StorageError: If a value is another number (``plinius-value``).
    """
    # Written so that NaN is outside.
    within = (pixels >= -_PIXEL_TOLERANCE) & (pixels <= 1 + _PIXEL_TOLERANCE)
    _check_all(within, file, first=first)
    whole = np.rint(pixels * 255)
    _check_all(np.abs(pixels - whole / 255) <= _PIXEL_TOLERANCE, file, first=first)
    return whole.astype(np.uint8).reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE)


def digits(
    ones: NDArray[np.float32], file: PliniusFile, *, first: int
) -> NDArray[np.uint8]:
    """Returns the place of the one 1 among 0s: (records,).

    Args:
        ones: (records, 10).
        file: Where they are from.
        first: Number of the first of them.

    Raises:
        StorageError: If a row is not nine 0 and one 1 (``plinius-value``).
    """
    _check_all((ones == 0) | (ones == 1), file, first=first)
    _check_all(ones.sum(axis=1, keepdims=True) == 1, file, first=first)
    places: NDArray[np.uint8] = ones.argmax(axis=1).astype(np.uint8)
    return places


def _open_record(cipher: AESGCM, record: bytes, file: PliniusFile, index: int) -> bytes:
    nonce, tag = record[_TAG_BYTES:_BODY_AT], record[:_TAG_BYTES]
    try:
        return cipher.decrypt(nonce, record[_BODY_AT:] + tag, None)
    except InvalidTag as error:
        raise StorageError(
            f"{file.path}: the tag of {file.kind} {index} does not hold",
            code="plinius-tag",
            expected="records encrypted with the key given",
            got="another key, or an altered record",
            remedy="Check the key; if it is right, fetch the file again."
            " Nothing was imported.",
        ) from error


def _check_new(
    nonces: set[bytes], record: bytes, file: PliniusFile, index: int
) -> None:
    # A copy of a record has a good tag. Nonces are random, so else no two are equal.
    nonce = record[_TAG_BYTES:_BODY_AT]
    if nonce in nonces:
        raise StorageError(
            f"{file.path}: {file.kind} {index} is there a second time",
            code="plinius-repeated",
            expected="every record once, with a nonce of its own",
            remedy="Fetch the file again. Nothing was imported.",
        )
    nonces.add(nonce)


def _check_all(right: NDArray[np.bool_], file: PliniusFile, *, first: int) -> None:
    wrong = np.flatnonzero(~right.all(axis=1))
    if wrong.size:
        raise StorageError(
            f"{file.path}: {file.kind} {first + int(wrong[0])} is no {file.kind}",
            code="plinius-value",
            expected="784 pixels k / 255"
            if file.kind == "image"
            else "one 1 among ten values",
            remedy="Check that the file is Plinius' MNIST. Nothing was imported.",
        )
