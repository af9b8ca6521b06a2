"""The IDX files of MNIST and of sets made like it, plain or gzip.

http://yann.lecun.com/exdb/mnist: integers big endian, then one byte a pixel, row by
row. A directory holds a file of images and one of labels for ``train`` (the training
records) and for ``t10k`` (the test set), or for one of the two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from typing_extensions import override

from cloister.errors import ConfigError
from cloister.storage.formats.held_out import SourceStream
from cloister.storage.formats.source_files import (
    check_directory,
    expect_end,
    malformed,
    missing,
    open_unpacked,
    read_exactly,
)
from cloister.storage.record_stream import CHUNK_RECORDS, Chunk
from cloister.storage.records import Batch, Field, Schema, SplitName

CLASSES = 10
IMAGE_SIZE = 28
MNIST_SCHEMA = Schema(
    fields=(
        Field(name="label", dtype="uint8", below=CLASSES),
        Field(name="image", dtype="uint8", shape=(1, IMAGE_SIZE, IMAGE_SIZE)),
    )
)

_EXPECTED = "train-images-idx3-ubyte and train-labels-idx1-ubyte, or t10k-*, or .gz"
_SPLITS: tuple[tuple[str, SplitName], ...] = (("train", "train"), ("t10k", "held-out"))
_PIXELS = IMAGE_SIZE * IMAGE_SIZE
# Type 8 is bytes; the last digit counts the dimensions.
_IMAGES_MAGIC = 0x0803
_LABELS_MAGIC = 0x0801
_IMAGES_HEADER = struct.Struct(">IIII")
_LABELS_HEADER = struct.Struct(">II")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """The two files of a split: `count` images and as many labels."""

    split: SplitName
    images: Path
    labels: Path
    count: int


def open_mnist(source: Path) -> SourceStream:
    """Returns the records of a directory of IDX files.

    Args:
        source: The directory.

    Raises:
        ConfigError: If the directory or its files are missing (``data-missing``), or
            there are two of one name, plain and packed (``data-ambiguous``).
        StorageError: If a file cannot be read (``data-unreadable``), is cut off
            (``data-truncated``), has another header, or there are not as many labels
            as images (``data-malformed``).
    """
    check_directory(source, expected=_EXPECTED)
    pairs: list[_Pair] = []
    for prefix, split in _SPLITS:
        images = _find(source, f"{prefix}-images", "idx3-ubyte")
        labels = _find(source, f"{prefix}-labels", "idx1-ubyte")
        if images is None and labels is None:
            continue
        if images is None or labels is None:
            lacking = "images" if images is None else "labels"
            raise missing(
                f"{source} has no {prefix}-{lacking} file", expected=_EXPECTED
            )
        pairs.append(_pair(split, images, labels))
    if not pairs:
        raise missing(f"{source} holds no IDX file", expected=_EXPECTED)
    return _Mnist(pairs)


def _find(source: Path, start: str, end: str) -> Path | None:
    # Some archives have a dot where the original has a dash.
    names = [start + mark + end + packed for mark in "-." for packed in ("", ".gz")]
    found = [source / name for name in names if (source / name).exists()]
    if len(found) > 1:
        raise ConfigError(
            f"{source} holds the same file twice",
            code="data-ambiguous",
            expected=f"one of {', '.join(names)}",
            got=", ".join(path.name for path in found),
            remedy="Keep one of them.",
        )
    return found[0] if found else None


def _pair(split: SplitName, images: Path, labels: Path) -> _Pair:
    with open_unpacked(images) as file:
        count = _read_images_header(file, images)
    with open_unpacked(labels) as file:
        label_count = _read_labels_header(file, labels)
    if label_count != count:
        raise malformed(labels, expected=f"{count} labels", got=str(label_count))
    return _Pair(split=split, images=images, labels=labels, count=count)


def _read_images_header(file: BufferedIOBase, path: Path) -> int:
    header = read_exactly(file, _IMAGES_HEADER.size, path=path)
    magic, count, rows, columns = _IMAGES_HEADER.unpack(header)
    if (magic, rows, columns) != (_IMAGES_MAGIC, IMAGE_SIZE, IMAGE_SIZE):
        raise malformed(
            path,
            expected=f"IDX images of {IMAGE_SIZE} x {IMAGE_SIZE} bytes",
            got=f"magic {magic:#x}, {rows} x {columns}",
        )
    return int(count)


def _read_labels_header(file: BufferedIOBase, path: Path) -> int:
    header = read_exactly(file, _LABELS_HEADER.size, path=path)
    magic, count = _LABELS_HEADER.unpack(header)
    if magic != _LABELS_MAGIC:
        raise malformed(
            path, expected="IDX labels of one byte", got=f"magic {magic:#x}"
        )
    return int(count)


class _Mnist(SourceStream):
    def __init__(self, pairs: Sequence[_Pair]) -> None:
        self._pairs = pairs

    @property
    @override
    def format(self) -> str:
        return "mnist"

    @property
    @override
    def schema(self) -> Schema:
        return MNIST_SCHEMA

    @property
    @override
    def total(self) -> int:
        return sum(pair.count for pair in self._pairs)

    @property
    @override
    def tells_splits(self) -> bool:
        return len(self._pairs) == len(_SPLITS)

    @override
    def chunks(self) -> Iterator[Chunk]:
        for pair in self._pairs:
            for columns in _columns_of(pair):
                split = pair.split if self.tells_splits else "train"
                yield Chunk(split=split, columns=columns)


def _columns_of(pair: _Pair) -> Iterator[Batch]:
    with open_unpacked(pair.images) as images, open_unpacked(pair.labels) as labels:
        read_exactly(images, _IMAGES_HEADER.size, path=pair.images)
        read_exactly(labels, _LABELS_HEADER.size, path=pair.labels)
        for first in range(0, pair.count, CHUNK_RECORDS):
            rows = min(CHUNK_RECORDS, pair.count - first)
            pixels = read_exactly(images, rows * _PIXELS, path=pair.images)
            image = np.frombuffer(pixels, np.uint8)
            label = read_exactly(labels, rows, path=pair.labels)
            yield {
                "label": np.frombuffer(label, np.uint8),
                "image": image.reshape(rows, 1, IMAGE_SIZE, IMAGE_SIZE),
            }
        expect_end(images, path=pair.images)
        expect_end(labels, path=pair.labels)
