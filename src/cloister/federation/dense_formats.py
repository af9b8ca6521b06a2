"""Formats that write every value, so the layout fixes their size.

Both put all parameters first, then the statistics as float64; `chunking.py` says where
each lies. They keep to `WireFormat`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from cloister.federation.bfloat16 import magnitudes_within, narrow, widen
from cloister.federation.blocks import BLOCK, blocks_of
from cloister.federation.chunking import Chunking
from cloister.federation.layout import Layout, ModelBuffer
from cloister.federation.transfer_sizes import FEW
from cloister.federation.value_limits import (
    FINITE,
    ValueLimits,
    check_values,
    refuse_values,
)

Vector = NDArray[np.float32]


class _Dense:
    """A format of one size for each parameter, and statistics as they are.

    Args:
        layout: The layout of what is written.
        chunk_bytes: Size of every chunk but the last; a multiple of 8.

    Attributes:
        value_bytes: See `WireFormat`.
        layout: See `WireFormat`.
        chunk_bytes: See `WireFormat`.
        size_bytes: See `WireFormat`.
        chunk_count: See `WireFormat`.
        values_per_chunk: See `WireFormat`.
    """

    value_bytes: ClassVar[int]

    def __init__(self, layout: Layout, *, chunk_bytes: int = FEW.chunk_bytes) -> None:
        self._chunking = Chunking(
            layout, value_bytes=self.value_bytes, chunk_bytes=chunk_bytes
        )
        self.chunk_bytes = chunk_bytes
        self.layout = layout
        self.size_bytes = self._chunking.size_bytes
        self.chunk_count = self._chunking.chunk_count
        self.values_per_chunk = self._chunking.values_per_chunk

    def statistics(self, chunks: Sequence[bytes]) -> NDArray[np.float64]:
        """See `WireFormat`."""
        return _gathered(self._chunking, chunks)


class Float32(_Dense):
    """Values as they lie in a `ModelBuffer`: its bytes are the wire form."""

    name: Final = "float32"
    value_bytes: ClassVar[int] = 4

    def encode(self, model: ModelBuffer, number: int) -> bytes:
        """See `WireFormat`."""
        start = number * self.chunk_bytes
        return _bytes_of(model.data[start : start + self.chunk_bytes])

    def decode(self, number: int, chunk: bytes, model: ModelBuffer) -> None:
        """See `WireFormat`."""
        self._chunking.check(number, chunk)
        start = number * self.chunk_bytes
        model.data[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)

    def check(
        self, number: int, chunk: bytes, *, limits: ValueLimits = FINITE
    ) -> bytes:
        """See `WireFormat`."""
        self._chunking.check(number, chunk)
        held = self._chunking.parameters(number)
        values = np.frombuffer(chunk, np.float32, held.stop - held.start)
        check_values(values, limit=limits.parameter)
        statistics = self._chunking.statistics_of(number, chunk)
        check_values(statistics, limit=limits.statistic)
        return chunk

    def parameters(self, number: int, chunk: bytes, start: int, stop: int) -> Vector:
        """See `WireFormat`; this is a view of the chunk, which lives as long."""
        first = number * self.values_per_chunk
        return np.frombuffer(chunk, np.float32, stop - start, (start - first) * 4)


class Bfloat16(_Dense):
    """Parameters rounded to bfloat16 (`bfloat16.py`), statistics as they are."""

    name: Final = "bfloat16"
    value_bytes: ClassVar[int] = 2

    def __init__(self, layout: Layout, *, chunk_bytes: int = FEW.chunk_bytes) -> None:
        super().__init__(layout, chunk_bytes=chunk_bytes)
        self._scratch = _Scratch(chunk_bytes)

    def encode(self, model: ModelBuffer, number: int) -> bytes:
        """See `WireFormat`."""
        held = self._chunking.parameters(number)
        values = model.parameters[held]
        chunk, scratch = self._scratch.chunk, self._scratch.block
        halves = chunk[: values.nbytes // 2].view(np.uint16)
        for block in blocks_of(0, len(values)):
            narrow(values[block], out=halves[block], scratch=scratch)
        statistics = model.statistics[self._chunking.statistics(number)]
        begin = halves.nbytes + self._chunking.padding(number)
        end = begin + statistics.nbytes
        chunk[halves.nbytes : begin] = 0
        chunk[begin:end] = statistics.view(np.uint8)
        return _bytes_of(chunk[:end])

    def decode(self, number: int, chunk: bytes, model: ModelBuffer) -> None:
        """See `WireFormat`."""
        self._chunking.check(number, chunk)
        held = self._chunking.parameters(number)
        _widen_all(self._halves(number, chunk), model.parameters[held])
        statistics = self._chunking.statistics_of(number, chunk)
        model.statistics[self._chunking.statistics(number)] = statistics

    def check(
        self, number: int, chunk: bytes, *, limits: ValueLimits = FINITE
    ) -> bytes:
        """See `WireFormat`."""
        self._chunking.check(number, chunk)
        halves = self._halves(number, chunk)
        if not magnitudes_within(halves, limit=limits.parameter):
            finite = magnitudes_within(halves, limit=FINITE.parameter)
            raise refuse_values(finite=finite, limit=limits.parameter)
        statistics = self._chunking.statistics_of(number, chunk)
        check_values(statistics, limit=limits.statistic)
        return chunk

    def parameters(self, number: int, chunk: bytes, start: int, stop: int) -> Vector:
        """See `WireFormat`; this is a copy."""
        first = number * self.values_per_chunk
        halves = np.frombuffer(chunk, np.uint16, stop - start, (start - first) * 2)
        values = np.empty(stop - start, np.float32)
        _widen_all(halves, values)
        return values

    def _halves(self, number: int, chunk: bytes) -> NDArray[np.uint16]:
        held = self._chunking.parameters(number)
        return np.frombuffer(chunk, np.uint16, held.stop - held.start)


class _Scratch(threading.local):
    """A thread's own memory for rounding; fresh memory would cost a fault a page.

    Attributes:
        chunk: Holds a chunk before it is bytes.
        block: Holds a block as it is rounded.
    """

    def __init__(self, chunk_bytes: int) -> None:
        self.chunk: NDArray[np.uint8] = np.empty(chunk_bytes, np.uint8)
        self.block: NDArray[np.uint32] = np.empty(BLOCK, np.uint32)


def _widen_all(halves: NDArray[np.uint16], out: Vector) -> None:
    for block in blocks_of(0, len(halves)):
        widen(halves[block], out=out[block])


def _gathered(chunking: Chunking, chunks: Sequence[bytes]) -> NDArray[np.float64]:
    parts = [chunking.statistics_of(n, chunk) for n, chunk in enumerate(chunks)]
    return np.concatenate([np.empty(0, np.float64), *parts])


def _bytes_of(data: NDArray[np.uint8]) -> bytes:
    """Returns a copy as bytes, which is what gRPC sends.

    Joining copies a large buffer without the interpreter's lock; `bytes` and `tobytes`
    keep it.
    """
    return b"".join((data.data,))
