"""What a data set looks like to a task: named arrays, one row a record.

Every format (raw shards, sealed data sets) is read through the same two protocols, so
a task never learns how its records lie on disk. Reading is by index: the order belongs
to the training engine, which must be able to resume it bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

SplitName = Literal["train", "held-out"]
Batch = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One named value of a record.

    Attributes:
        name: Key under which a batch carries it.
        dtype: NumPy type name, little endian, for example ``uint8``.
        shape: Shape of one record's value; empty for a scalar.
        below: For integer fields, the exclusive upper bound of every value.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    below: int | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of this field in one record."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The fields of one record, in the order they are stored."""

    fields: tuple[Field, ...]

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return sum(field.size_bytes for field in self.fields)


class Records(Protocol):
    """The records of one split, readable by index from any thread."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Returns the records at `indices`, each field stacked: (len(indices), ...).

        Raises:
            StorageError: If a record cannot be read whole and authentic.
        """
        ...


class DataSource(Protocol):
    """One party's data set."""

    def split(self, name: SplitName) -> Records:
        """Returns the records of one split.

        Raises:
            StorageError: If the data set has no such split, or it is damaged.
        """
        ...
