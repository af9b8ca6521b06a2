"""Scikit-learn's 1,797 scanned digits, which need no download, as records.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998. A record is a label and three equal planes of 8x8 bytes, the
scan's values 0 to 16 scaled to 0 to 240: so they fit networks for colour images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError
from cloister.storage.record_stream import CHUNK_RECORDS, Chunk
from cloister.storage.records import Batch, Field, Schema, SplitName

DIGIT_SIZE = 8
DIGIT_SHAPE = (3, DIGIT_SIZE, DIGIT_SIZE)
_HELD_OUT_SHARE = 5  # one digit in five
_HELD_OUT_SEED = 0  # never changes, so that accuracies can be compared


class DigitStream:
    """All digits in an order that a seed decides.

    Which fifth is held out does not depend on the seed.

    Args:
        seed: Of the order.
        image_shape: How a task wants the 192 values of an image.

    Raises:
        ConfigError: If scikit-learn is not installed.
    """

    def __init__(
        self, *, seed: int, image_shape: tuple[int, ...] = DIGIT_SHAPE
    ) -> None:
        self._splits = digit_records(seed=seed)
        self._shape = image_shape

    @property
    def format(self) -> str:
        """Where the records come from."""
        return "digits"

    @property
    def schema(self) -> Schema:
        """Label and image."""
        return Schema(
            fields=(
                Field(name="label", dtype="uint8", below=10),
                Field(name="image", dtype="uint8", shape=self._shape),
            )
        )

    @property
    def total(self) -> int:
        """Digits of both splits."""
        return sum(len(rows) for rows in self._splits.values())

    def chunks(self) -> Iterator[Chunk]:
        """Yields all digits, those to train on first."""
        for split, rows in self._splits.items():
            for start in range(0, len(rows), CHUNK_RECORDS):
                some = rows[start : start + CHUNK_RECORDS]
                images = some[:, 1:].reshape(-1, *self._shape)
                columns: Batch = {"label": some[:, 0], "image": images}
                yield Chunk(split=split, columns=columns)


def digit_records(*, seed: int) -> dict[SplitName, NDArray[np.uint8]]:
    """Returns the records of each split, in an order that the seed decides.

    Returns:
        (records, 1 + 3 * 64): the label, then the planes.

    Raises:
        ConfigError: If scikit-learn is not installed.
    """
    records = _all_records()
    order = np.random.default_rng(_HELD_OUT_SEED).permutation(len(records))
    held_out = len(records) // _HELD_OUT_SHARE
    generator = np.random.default_rng(seed)
    train = generator.permutation(order[held_out:])
    test = generator.permutation(order[:held_out])
    return {"train": records[train], "held-out": records[test]}


def _all_records() -> NDArray[np.uint8]:
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            "the handwritten digits come with scikit-learn, which is not installed",
            code="digits-missing",
            remedy="Install cloister[digits], or give a data directory.",
        ) from error
    digits = load_digits()
    planes = (np.asarray(digits.images) * 15).astype(np.uint8)
    planes = planes.reshape(len(planes), -1)
    labels = np.asarray(digits.target, np.uint8)[:, None]
    return np.concatenate([labels, planes, planes, planes], axis=1)
