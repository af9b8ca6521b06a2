"""A mapping as bytes: stores of any size, and of whole words at once."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from cloister.storage.mirror.region import WORD, check_range


class MappedBytes:
    """Writes to a mapping and reads from it, from several threads at once.

    NumPy copies, for it lets other threads work meanwhile.

    Args:
        mapping: Writable, a multiple of `WORD` bytes, at such an address.
    """

    def __init__(self, mapping: Buffer) -> None:
        view = memoryview(mapping)
        self._bytes: Final[NDArray[np.uint8]] = np.frombuffer(view, np.uint8)
        self._words: Final[NDArray[np.uint64]] = np.frombuffer(view, np.uint64)

    def store(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Stores `data` at `offset`; eight aligned bytes with one store."""
        check_range(offset, data.size, limit=self._bytes.size)
        if data.size == WORD and offset % WORD == 0:
            self._words[offset // WORD] = data.view(np.uint64)[0]
        else:
            np.copyto(self._bytes[offset : offset + data.size], data)

    def load(self, offset: int, buffer: memoryview) -> None:
        """Fills `buffer` from `offset` on."""
        length = buffer.nbytes
        check_range(offset, length, limit=self._bytes.size)
        if length:
            target = np.frombuffer(buffer, np.uint8)
            np.copyto(target, self._bytes[offset : offset + length])


def bytes_of(data: Buffer) -> NDArray[np.uint8]:
    """Returns a view of contiguous `data` as bytes."""
    view = memoryview(data)
    return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
