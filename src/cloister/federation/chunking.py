"""Where a model's values lie in its chunks on the wire.

A wire form is all parameters, zeros up to the next multiple of eight bytes, and all
statistics as float64. Chunk n is its bytes from n * chunk_bytes on, as many, or fewer
if it is the last: who knows the layout knows every chunk's size and content, and any
other is refused.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ProtocolError
from cloister.federation.layout import Layout

_ALIGNMENT: Final = 8


class Chunking:
    """How the values of a layout are spread over chunks.

    Args:
        layout: The model's layout.
        value_bytes: Size of a parameter on the wire; divides 8.
        chunk_bytes: Size of every chunk but the last; a multiple of 8.

    Attributes:
        size_bytes: Size of the wire form.
        chunk_count: Number of chunks.
        values_per_chunk: Parameters in a chunk that holds nothing else.
    """

    __slots__ = (
        "_chunk_bytes",
        "_parameters",
        "_statistics_at",
        "_value_bytes",
        "chunk_count",
        "size_bytes",
        "values_per_chunk",
    )

    def __init__(self, layout: Layout, *, value_bytes: int, chunk_bytes: int) -> None:
        if chunk_bytes <= 0 or chunk_bytes % _ALIGNMENT:
            raise ValueError("a chunk is a multiple of eight bytes")
        self._chunk_bytes = chunk_bytes
        self._value_bytes = value_bytes
        self._parameters = layout.parameter_count
        unpadded = layout.parameter_count * value_bytes
        self._statistics_at = -(-unpadded // _ALIGNMENT) * _ALIGNMENT
        self.size_bytes: int = self._statistics_at + layout.statistic_count * 8
        self.chunk_count = -(-self.size_bytes // chunk_bytes)
        self.values_per_chunk = chunk_bytes // value_bytes

    def parameters(self, number: int) -> slice:
        """Returns which parameters a chunk holds; it begins with them."""
        start = number * self.values_per_chunk
        stop = start + self.values_per_chunk
        return slice(min(start, self._parameters), min(stop, self._parameters))

    def statistics(self, number: int) -> slice:
        """Returns which statistics a chunk holds; it ends with them."""
        start = number * self._chunk_bytes - self._statistics_at
        stop = start + self._size(number)
        return slice(max(0, start) // 8, max(0, stop) // 8)

    def padding(self, number: int) -> int:
        """Returns how many zeros lie between the two."""
        parameters, statistics = self.parameters(number), self.statistics(number)
        used: int = (parameters.stop - parameters.start) * self._value_bytes
        used += (statistics.stop - statistics.start) * 8
        return self._size(number) - used

    def statistics_of(self, number: int, chunk: bytes) -> NDArray[np.float64]:
        """Returns a view of the statistics in a chunk of the right size."""
        held = self.statistics(number)
        count = held.stop - held.start
        return np.frombuffer(chunk, np.float64, count, len(chunk) - count * 8)

    def check(self, number: int, chunk: bytes) -> bytes:
        """Returns a chunk that has its place's size, and zeros where it has to.

        Raises:
            ProtocolError: If it is longer or shorter, comes after the last, or is
                padded with anything else: a value has one wire form.
        """
        if number >= self.chunk_count or len(chunk) != self._size(number):
            expected = "no more chunks"
            if number < self.chunk_count:
                expected = f"{self._size(number)} bytes"
            raise ProtocolError(
                "a chunk does not fit the layout",
                code="chunk-size",
                expected=expected,
                got=f"{len(chunk)} bytes",
            )
        if padding := self.padding(number):
            held = self.parameters(number)
            start = (held.stop - held.start) * self._value_bytes
            if any(chunk[start : start + padding]):
                raise ProtocolError(
                    "a chunk is padded with something",
                    code="chunk-padding",
                    expected="zeros",
                )
        return chunk

    def _size(self, number: int) -> int:
        start = number * self._chunk_bytes
        return min(self._chunk_bytes, self.size_bytes - start)
