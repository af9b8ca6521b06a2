"""Made-up records in memory: clouds of points, one cloud a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.storage.records import Batch, SplitName


@dataclass(frozen=True, slots=True)
class MemoryRecords:
    """The records of one split."""

    columns: Batch

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def read(self, indices: NDArray[np.int64]) -> Batch:
        return {name: column[indices] for name, column in self.columns.items()}


@dataclass(frozen=True, slots=True)
class MemorySource:
    """One party's data set."""

    splits: dict[SplitName, MemoryRecords]

    def split(self, name: SplitName) -> MemoryRecords:
        return self.splits[name]


def clouds(
    *, seed: int, features: int, classes: int, train: int = 96, held_out: int = 48
) -> MemorySource:
    """Returns records whose classes a straight line can nearly tell apart.

    The centres are the same for every seed, so that all parties have one problem.
    """
    centres = np.random.default_rng(0).uniform(60, 190, (classes, features))
    generator = np.random.default_rng(seed)

    def records(count: int) -> MemoryRecords:
        labels = generator.integers(0, classes, count)
        images = centres[labels] + generator.normal(0, 30, (count, features))
        return MemoryRecords(
            {
                "label": labels.astype(np.uint8),
                "image": images.clip(0, 255).astype(np.uint8),
            }
        )

    return MemorySource({"train": records(train), "held-out": records(held_out)})
