"""Batches of tensors: what a PyTorch task learns from, and the ones it gets by default.

A batch is whatever the task's own loss understands: the engine passes it on unseen. So
it may be a dictionary, a tuple, a single tensor, or a class of the task's own.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import TypeVar

from cloister.errors import ConfigError
from cloister.storage.records import Records

Tensors = dict[str, torch.Tensor]

# Of a task that says nothing, a batch is its records as tensors by field name.
BatchT = TypeVar("BatchT", default=Tensors)


class RecordTensors:
    """Records as tensors by field name, each (len(indices), *field.shape).

    Numbers get the types that PyTorch computes with: floating-point fields become
    float32 and integers int64, which a loss wants of labels and an embedding of its
    indices. Only fields of bytes that have a shape, images for instance, stay uint8:
    eight times their size would be waste.

    Args:
        records: The records of one split.
    """

    def __init__(self, records: Records) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def batch(
        self,
        indices: NDArray[np.int64],
        generator: np.random.Generator,  # noqa: ARG002 - nothing here is random
    ) -> Tensors:
        """Returns the records at `indices`."""
        record = self._records.read(indices)
        return {name: _tensor(column) for name, column in record.items()}


def _tensor(column: NDArray[np.generic]) -> torch.Tensor:
    if column.dtype.kind == "f":
        dtype: type[np.generic] = np.float32
    elif column.dtype == np.uint8 and column.ndim > 1:
        dtype = np.uint8
    else:
        dtype = np.int64
    # A copy in any case: a column may be a view into the bytes of stored records, which
    # need not be aligned, and PyTorch takes no such array.
    return torch.from_numpy(np.array(column, dtype, order="C"))


def to_array(value: object) -> NDArray[np.generic]:
    """Returns a tensor's values as an array of its own; bfloat16 becomes float32.

    Raises:
        ConfigError: If it is no tensor (``task-predict``).
    """
    if not isinstance(value, torch.Tensor):
        raise ConfigError(
            "the task predicts something that is no tensor",
            code="task-predict",
            expected="tensors by name",
            got=type(value).__name__,
            remedy="Correct predict() in the task.",
        )
    known = value.detach()
    # NumPy has no bfloat16, and nobody who reads predictions should need it.
    wide = known.float() if known.dtype == torch.bfloat16 else known
    array: NDArray[np.generic] = wide.numpy().copy()
    return array
