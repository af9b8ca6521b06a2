"""How a model or an update is written as chunks, and read again.

A format of a size that the layout fixes fits behind `WireFormat` as it is: int8 with a
scale for each block, or the largest k values of each block with their places, where
`parameters` writes the others as zeros. Each chunk stands for the parameters from
number * values_per_chunk on, so it can be summed as it comes and freed. A format whose
size depends on the values (compressed, sparse) keeps that rule and lets the update's
header say the size of each chunk, which `check` then holds it to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cloister.federation.dense_formats import Bfloat16, Float32, Vector
from cloister.federation.layout import Layout, ModelBuffer
from cloister.federation.transfer_sizes import transfer_sizes
from cloister.federation.value_limits import FINITE, ValueLimits

__all__ = [
    "Bfloat16",
    "Float32",
    "Vector",
    "Wire",
    "WireFormat",
    "wire_format",
]


Wire = Literal["float32", "bfloat16"]


class WireFormat(Protocol):
    """Writes and reads chunks; used by several threads at once."""

    @property
    def name(self) -> Wire:
        """Its name in a plan."""
        ...

    @property
    def layout(self) -> Layout:
        """The layout of what it writes."""
        ...

    @property
    def value_bytes(self) -> int:
        """Size of a parameter."""
        ...

    @property
    def size_bytes(self) -> int:
        """Size of a whole model."""
        ...

    @property
    def chunk_bytes(self) -> int:
        """Size of every chunk but the last."""
        ...

    @property
    def chunk_count(self) -> int:
        """Number of chunks."""
        ...

    @property
    def values_per_chunk(self) -> int:
        """Parameters in a chunk that holds nothing else."""
        ...

    def encode(self, model: ModelBuffer, number: int) -> bytes:
        """Returns a chunk of a model.

        Args:
            model: The model; its values may be anything.
            number: Which chunk, counted from 0.
        """
        ...

    def decode(self, number: int, chunk: bytes, model: ModelBuffer) -> None:
        """Writes a chunk's values into a model.

        Raises:
            ProtocolError: If its size or padding is wrong. Values may be any.
        """
        ...

    def check(
        self, number: int, chunk: bytes, *, limits: ValueLimits = FINITE
    ) -> bytes:
        """Returns a chunk that may count as part of an update.

        Raises:
            ProtocolError: If its size or padding is wrong, or a value is NaN, infinite
                or beyond the limits.
        """
        ...

    def parameters(self, number: int, chunk: bytes, start: int, stop: int) -> Vector:
        """Returns parameters of a checked chunk, to be read only.

        Args:
            number: Which chunk.
            chunk: The chunk.
            start: The first parameter, counted in the model.
            stop: The one after the last; of the same chunk.
        """
        ...

    def statistics(self, chunks: Sequence[bytes]) -> NDArray[np.float64]:
        """Returns a copy of all statistics of checked chunks: (statistic_count,)."""
        ...


def wire_format(name: Wire, layout: Layout, *, workers: int) -> WireFormat:
    """Returns the format that a plan names.

    Args:
        name: Its name there.
        layout: The layout of what is written.
        workers: How many the plan names; the size of chunks depends on it.
    """
    chunk_bytes = transfer_sizes(workers).chunk_bytes
    match name:
        case "float32":
            return Float32(layout, chunk_bytes=chunk_bytes)
        case "bfloat16":
            return Bfloat16(layout, chunk_bytes=chunk_bytes)
