"""Updates and models as they arrive, chunk by chunk.

The server keeps an update as the very bytes that came: they are read where they lie,
once, and freed as soon as they are in the sum. A worker's model goes into its buffer at
once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from cloister.errors import ProtocolError
from cloister.federation.blocks import BLOCK
from cloister.federation.layout import ModelBuffer
from cloister.federation.value_limits import FINITE, ValueLimits
from cloister.federation.wire_format import Vector, WireFormat


class Update:
    """A whole update, every chunk of it checked. Made by a `Receiver` alone.

    Args:
        wire: How it is written.
        chunks: All its chunks, checked; they belong to the update.
        limits: What its values keep to.

    Attributes:
        limits: The same.
        values_per_chunk: Parameters in a chunk that holds nothing else.
    """

    __slots__ = ("_chunks", "_statistics", "_wire", "limits", "values_per_chunk")

    def __init__(
        self, wire: WireFormat, chunks: list[bytes], *, limits: ValueLimits
    ) -> None:
        self._wire: Final = wire
        self._chunks: list[bytes | None] = [*chunks]
        self._statistics: NDArray[np.float64] | None = wire.statistics(chunks)
        self.limits: Final = limits
        self.values_per_chunk: Final = wire.values_per_chunk

    @override
    def __repr__(self) -> str:
        return f"Update({self.held_bytes} of {self._wire.size_bytes} bytes held)"

    @property
    def held_bytes(self) -> int:
        """Bytes of the chunks that are still held."""
        return sum(len(chunk) for chunk in self._chunks if chunk is not None)

    @property
    def statistics(self) -> NDArray[np.float64]:
        """All statistics: (statistic_count,).

        Raises:
            RuntimeError: If they have been released.
        """
        if self._statistics is None:
            raise RuntimeError("an update was read after its release")
        return self._statistics

    def parameters(self, start: int, stop: int) -> Vector:
        """Returns parameters `start` to `stop`, to be read only.

        What is returned may hold the chunk's memory as long as it lives.

        Raises:
            ValueError: If they are not of one chunk.
            RuntimeError: If they have been released.
        """
        number = start // self.values_per_chunk
        if not start < stop <= (number + 1) * self.values_per_chunk:
            raise ValueError("parameters are read from one chunk at a time")
        chunk = self._chunks[number]
        if chunk is None:
            raise RuntimeError("an update was read after its release")
        return self._wire.parameters(number, chunk, start, stop)

    def release_before(self, stop: int) -> None:
        """Frees all chunks of nothing but parameters before `stop`."""
        for number in range(min(stop // self.values_per_chunk, len(self._chunks))):
            self._chunks[number] = None

    def release(self) -> None:
        """Frees all of it."""
        self._chunks = [None] * len(self._chunks)
        self._statistics = None


def narrowest(updates: Sequence[Update]) -> int:
    """Returns how many parameters lie in one chunk of each, or `BLOCK` without any."""
    return math.gcd(BLOCK, *(update.values_per_chunk for update in updates))


class Receiver:
    """Takes an update's chunks, in order, and keeps them as they are.

    Args:
        wire: How the update is written.
        limits: What its values must keep to: those of the sum it is for.
    """

    def __init__(self, wire: WireFormat, *, limits: ValueLimits = FINITE) -> None:
        self._wire = wire
        self._limits = limits
        self._chunks: list[bytes] = []

    @property
    def number(self) -> int:
        """Which chunk comes next, counted from 0."""
        return len(self._chunks)

    @property
    def whole(self) -> bool:
        """Whether every chunk has come."""
        return self.number == self._wire.chunk_count

    def feed(self, chunk: bytes) -> None:
        """Takes the next chunk.

        Raises:
            ProtocolError: If its size is wrong, or a value is NaN, infinite or too
                large.
        """
        self._chunks.append(self._wire.check(self.number, chunk, limits=self._limits))

    def drop(self) -> None:
        """Drops what has come; nothing of it counts."""
        self._chunks = []

    def finish(self) -> Update:
        """Returns the update; the receiver keeps nothing of it.

        Raises:
            ProtocolError: If chunks are missing.
        """
        _check_whole(self.number, self._wire)
        chunks, self._chunks = self._chunks, []
        return Update(self._wire, chunks, limits=self._limits)


class ModelReceiver:
    """Writes a model's chunks into a buffer, in order.

    Args:
        wire: How the model is written.
        model: Receives it; its content counts only after `finish`.
    """

    def __init__(self, wire: WireFormat, model: ModelBuffer) -> None:
        self._wire = wire
        self._model = model
        self._number = 0

    def feed(self, chunk: bytes) -> None:
        """Takes the next chunk.

        Raises:
            ProtocolError: If its size is wrong.
        """
        self._wire.decode(self._number, chunk, self._model)
        self._number += 1

    def finish(self) -> None:
        """Confirms that the model is whole.

        Raises:
            ProtocolError: If chunks are missing.
        """
        _check_whole(self._number, self._wire)


def _check_whole(number: int, wire: WireFormat) -> None:
    if number != wire.chunk_count:
        raise ProtocolError(
            "a transfer ended early",
            code="transfer-short",
            expected=f"{wire.chunk_count} chunks",
            got=str(number),
        )
