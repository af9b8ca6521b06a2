"""Scikit-learn's breast-cancer data, dealt out to hospitals with different patients.

W. Wolberg, O. Mangasarian, N. Street, W. Street, "Breast Cancer Wisconsin
(Diagnostic)", UCI Machine Learning Repository, 1993: 569 tumours, 30 measurements of
each, and whether it is malignant (label 1) or benign (label 0).

For demonstrations and trials. The first hospital sees mostly malignant tumours, the
last mostly benign ones, and those between are small. A quarter of all tumours is held
out, always the same ones, and dealt out evenly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError
from cloister.storage.record_stream import CHUNK_RECORDS, Chunk
from cloister.storage.records import Batch, Field, Schema, SplitName

FEATURES = 30
CLASSES = 2
_HELD_OUT_SHARE = 4  # one tumour in four
_HELD_OUT_SEED = 0  # never changes, so that accuracies can be compared
# What the first and the last hospital have of the malignant and of the benign tumours.
_FIRST_HAS = (0.06, 0.85)  # by label
_LAST_HAS = (0.90, 0.05)
_FEWEST_HOSPITALS, _MOST_HOSPITALS = 2, 10  # with more, some would have one tumour
_SCHEMA = Schema(
    fields=(
        Field(name="features", dtype="float32", shape=(FEATURES,)),
        Field(name="label", dtype="uint8", below=CLASSES),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalRecords:
    """One hospital's records, in memory: a `RecordStream`.

    Attributes:
        splits: Each split's columns.
    """

    splits: Mapping[SplitName, Batch] = field(repr=False)

    @property
    def format(self) -> str:
        """Where the records come from."""
        return "breast-cancer"

    @property
    def schema(self) -> Schema:
        """Measurements and label."""
        return _SCHEMA

    @property
    def total(self) -> int:
        """Tumours of both splits."""
        return sum(len(columns["label"]) for columns in self.splits.values())

    def chunks(self) -> Iterator[Chunk]:
        """Yields all records, those to train on first."""
        for split, columns in self.splits.items():
            for start in range(0, len(columns["label"]), CHUNK_RECORDS):
                some = slice(start, start + CHUNK_RECORDS)
                yield Chunk(
                    split=split,
                    columns={name: column[some] for name, column in columns.items()},
                )


def deal_breast_cancer(
    hospitals: Sequence[str], *, seed: int
) -> dict[str, HospitalRecords]:
    """Returns each hospital's records; every tumour is one hospital's.

    Args:
        hospitals: Their names, two or more.
        seed: Decides who gets which tumour.

    Raises:
        ConfigError: If scikit-learn is not installed (``breast-cancer-missing``), or
            there are too few hospitals or too many (``hospitals-number``).
    """
    rows = _rows()
    labels = rows["label"].astype(np.int64)
    order = np.random.default_rng(_HELD_OUT_SEED).permutation(len(labels))
    held_out, train = np.split(order, [len(order) // _HELD_OUT_SHARE])
    generator = np.random.default_rng(seed)
    dealt: list[list[NDArray[np.int64]]] = [[] for _ in hospitals]
    for label, shares in enumerate(_shares(len(hospitals))):
        mine = generator.permutation(train[labels[train] == label])
        cuts = np.round(np.cumsum(shares)[:-1] * len(mine)).astype(np.int64)
        for place, part in zip(dealt, np.split(mine, cuts), strict=True):
            place.append(part)
    chosen: dict[str, dict[SplitName, NDArray[np.int64]]] = {
        name: {
            # Mixed: in the order dealt, all of one label would come first.
            "train": generator.permutation(np.concatenate(parts)),
            "held-out": held_out[place :: len(hospitals)],
        }
        for place, (name, parts) in enumerate(zip(hospitals, dealt, strict=True))
    }
    return {name: _records(rows, splits) for name, splits in chosen.items()}


def _shares(hospitals: int) -> Iterator[list[float]]:
    """Yields, for each label, which share of its tumours each hospital has."""
    if not _FEWEST_HOSPITALS <= hospitals <= _MOST_HOSPITALS:
        raise _number_error(hospitals)
    between = hospitals - _FEWEST_HOSPITALS
    for first, last in zip(_FIRST_HAS, _LAST_HAS, strict=True):
        if not between:
            yield [first / (first + last), last / (first + last)]
        else:
            yield [
                first,
                *itertools.repeat((1 - first - last) / between, between),
                last,
            ]


def _records(
    rows: Batch, splits: Mapping[SplitName, NDArray[np.int64]]
) -> HospitalRecords:
    return HospitalRecords(
        splits={
            split: {name: column[indices] for name, column in rows.items()}
            for split, indices in splits.items()
        }
    )


def _rows() -> Batch:
    try:
        from sklearn.datasets import load_breast_cancer  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            "the breast-cancer data comes with scikit-learn, which is not installed",
            code="breast-cancer-missing",
            remedy="Install cloister[digits].",
        ) from error
    bundled = load_breast_cancer()
    return {
        "features": np.asarray(bundled.data, np.float32),
        # There 0 is malignant.
        "label": (np.asarray(bundled.target) == 0).astype(np.uint8),
    }


def _number_error(hospitals: int) -> ConfigError:
    return ConfigError(
        "the tumours cannot be dealt out to so many hospitals",
        code="hospitals-number",
        expected=f"{_FEWEST_HOSPITALS} to {_MOST_HOSPITALS}",
        got=str(hospitals),
        remedy="Name other parties.",
    )
