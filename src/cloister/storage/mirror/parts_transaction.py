"""Changes to arrays in memory that can be taken back until they are durable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.storage.mirror.array_layout import ArrayLayout, Block, Bytes


class PartsTransaction:
    """Changes that become durable together, or not at all.

    Args:
        layout: The arrays.
        values: Their bytes, in the order of the layout.

    Attributes:
        former: Number and former content of each block that was touched.
    """

    def __init__(self, layout: ArrayLayout, values: Sequence[Bytes]) -> None:
        self._layout = layout
        self._values = values
        self.former: dict[int, Bytes] = {}
        self._over = False

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Replaces elements of an array, which is taken flat, in C order.

        `PartsMirror.read` gives them at once.

        Args:
            name: The array.
            start: The first element's number.
            values: What takes their places, of the array's type.

        Raises:
            RuntimeError: If there is no such array, it has no such elements, the type
                is another, or the transaction is over.
        """
        if self._over:
            raise RuntimeError("the transaction is over")
        number = self._layout.number_of(name)
        spec = self._layout.arrays[number]
        if values.dtype != np.dtype(spec.dtype):
            raise RuntimeError(f"the array {name} has no values of {values.dtype}")
        at = start * values.dtype.itemsize
        end = at + values.nbytes
        if start < 0 or end > spec.size_bytes:
            raise RuntimeError(f"the array {name} has no such elements")
        content = self._values[number]
        for block in self._layout.blocks_between(number, at, end):
            if block.number not in self.former:
                self.former[block.number] = _part(content, block).copy()
        flat = np.ascontiguousarray(values).reshape(-1)
        content[at:end] = flat.view(np.uint8)

    def end(self) -> None:
        """Takes no more changes."""
        self._over = True

    def undo(self) -> None:
        """Puts the former values back."""
        for number, content in self.former.items():
            block = self._layout.blocks[number]
            _part(self._values[block.array], block)[:] = content


def _part(content: Bytes, block: Block) -> Bytes:
    return content[block.start : block.start + block.size_bytes]
