"""Moves a model buffer as raw chunks.

Two MiB is where gRPC over TLS comes closest to a raw socket (256 KiB halves the speed).
gRPC takes `bytes` alone, so a chunk is copied once on each side and never again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cloister.errors import ProtocolError
from cloister.federation.layout import ModelBuffer

CHUNK_BYTES = 2 * 1024 * 1024


def chunks_of(buffer: ModelBuffer) -> Iterator[bytes]:
    """Yields the buffer as chunks, in order."""
    view = buffer.data.data
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


class Receiver:
    """Fills a buffer from chunks and knows whether it is whole.

    Args:
        buffer: Receives the bytes; its content counts only after `finish`.
    """

    def __init__(self, buffer: ModelBuffer) -> None:
        self._data = buffer.data
        self._at = 0

    def feed(self, chunk: bytes) -> None:
        """Takes the next chunk.

        Raises:
            ProtocolError: If it is empty or does not fit what is still missing.
        """
        stop = self._at + len(chunk)
        if not chunk or stop > len(self._data):
            raise ProtocolError(
                "a chunk does not fit the layout",
                code="chunk-size",
                expected=f"1 to {len(self._data) - self._at} bytes",
                got=str(len(chunk)),
            )
        self._data[self._at : stop] = np.frombuffer(chunk, np.uint8)
        self._at = stop

    @property
    def whole(self) -> bool:
        """Whether every byte of the layout has come."""
        return self._at == len(self._data)

    def finish(self) -> None:
        """Confirms that the buffer is whole.

        Raises:
            ProtocolError: If bytes are missing.
        """
        if not self.whole:
            raise ProtocolError(
                "a transfer ended early",
                code="transfer-short",
                expected=f"{len(self._data)} bytes",
                got=str(self._at),
            )
