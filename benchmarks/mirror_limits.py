"""What no save can be faster than: the cipher, and the medium's writing."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.storage.mirror.array_layout import ArrayLayout, Block
from cloister.storage.mirror.block_work import BlockWork
from cloister.storage.mirror.state_mirror import BLOCK_BYTES
from cloister.storage.mirror.subject import ArraySpec

_WRITE_BYTES: Final = 8 * 1024 * 1024


class Limits:
    """The parts of a save, each alone.

    Args:
        directory: On the medium.
        size: Bytes of the state.
        threads: Share the cipher's work.
        count: How many work at once.
    """

    def __init__(
        self, directory: Path, *, size: int, threads: Executor, count: int
    ) -> None:
        self._source = np.random.default_rng(9).integers(0, 256, size, np.uint8)
        self._target = np.ones(size, np.uint8)
        self._aead = AESGCM(bytes(32))
        self._numbers = 0
        spec = ArraySpec(name="all", shape=(size,), dtype="|u1")
        self._blocks = ArrayLayout([spec], block_bytes=BLOCK_BYTES).blocks
        self._work = BlockWork(BLOCK_BYTES, threads=threads, count=count)
        self._path = directory / "limit"
        self._path.write_bytes(self._source.tobytes())

    def cipher(self) -> None:
        """Encrypts it, to nowhere."""
        self._numbers += 1
        begin = self._numbers.to_bytes(8, "big")

        def act(block: Block, memory: memoryview) -> None:
            content = self._source.data[block.offset : block.offset + block.size_bytes]
            nonce = begin + block.number.to_bytes(4, "big")
            into = memory[: block.size_bytes + 16]
            self._aead.encrypt_into(nonce, content, None, into)

        self._work.each(self._blocks, act)

    def memory(self) -> None:
        """Copies it, by as many threads."""

        def act(block: Block, memory: memoryview) -> None:
            del memory
            place = slice(block.offset, block.offset + block.size_bytes)
            np.copyto(self._target[place], self._source[place])

        self._work.each(self._blocks, act)

    def disk(self) -> None:
        """Writes it over a file that is there, durably."""
        file = os.open(self._path, os.O_WRONLY)
        try:
            for at in range(0, len(self._source), _WRITE_BYTES):
                os.pwrite(file, self._source.data[at : at + _WRITE_BYTES], at)
            os.fdatasync(file)
        finally:
            os.close(file)
