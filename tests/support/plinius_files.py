"""Writes files in the format of Plinius' encrypted MNIST, from any images."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

KEY = bytes(range(16))
RECORD_BYTES = {"image": 16 + 12 + 4 * 784, "label": 16 + 12 + 4 * 10}
HEADER_BYTES = {"image": 12, "label": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class PliniusFiles:
    """The two files."""

    images: Path
    labels: Path


def write_plinius(
    directory: Path, pixels: NDArray[np.float32], ones: NDArray[np.float32]
) -> PliniusFiles:
    """Encrypts pixels (records, 784) and labels (records, 10) as Plinius does."""
    files = PliniusFiles(
        images=directory / "enc_mnist_imgs.data",
        labels=directory / "enc_mnist_labels.data",
    )
    header = struct.pack("<III", 28, 28, len(pixels))
    files.images.write_bytes(header + _records(pixels, nonces_from=0))
    header = struct.pack("<I", len(ones))
    files.labels.write_bytes(header + _records(ones, nonces_from=1 << 32))
    return files


def as_floats(
    images: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns pixels and labels as Plinius has them: k / 255, and one 1 among 0s."""
    pixels = images.reshape(len(images), -1).astype(np.float32) * np.float32(1 / 255)
    return pixels, np.eye(10, dtype=np.float32)[labels]


def _records(values: NDArray[np.float32], *, nonces_from: int) -> bytes:
    # Nonces differ; that they are not random is no matter for a test.
    cipher = AESGCM(KEY)
    records = []
    for number, row in enumerate(values, start=nonces_from):
        nonce = number.to_bytes(12, "little")
        sealed = cipher.encrypt(nonce, row.astype("<f4").tobytes(), None)
        records.append(sealed[-16:] + nonce + sealed[:-16])
    return b"".join(records)
