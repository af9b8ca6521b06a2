"""A region on a simulated device that loses power, or its process, at some operation.

It has two images: what the process sees, and what is durable for certain. Of each word
of eight bytes it keeps every value between the two; after the cut any of them may be
there, each word by itself: stores are dropped, torn and put in any order. What was
flushed before a fence that returned is there always. The worst device that the words
of `Region` allow, therefore.

Where only the process dies, the next one sees all that was stored; nothing becomes
durable by that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typing_extensions import Buffer

from cloister.storage.mirror.region import PAGE, WORD, check_range
from cloister.storage.mirror.subject import Survives


class PowerCut(Exception):  # noqa: N818 - named for what happened
    """The device is off; it answers nothing any more."""


class ProcessDeath(Exception):  # noqa: N818 - named for what happened
    """The process was killed; it does nothing any more."""


class CrashingRegion:
    """See `Region`.

    Args:
        image: What lies on the device, whole pages.
        cut_at: The write, flush or fence at which it loses power, from 1 on; a write
            is made first, a flush or fence is not. 0 for never.
        kill_at: The same, for the process; of a write some words are stored.
        deaf: A number and a period: of so many fences, the one of this number, from 0
            on, does nothing. A device that lies, to try the tests themselves.
    """

    def __init__(
        self,
        image: bytes,
        *,
        cut_at: int = 0,
        kill_at: int = 0,
        deaf: tuple[int, int] | None = None,
    ) -> None:
        assert image
        assert len(image) % PAGE == 0
        self.operations = 0
        self.stored_bytes = 0
        self.published = False
        self.closed = False
        self._seen = bytearray(image)
        self._durable = bytearray(image)
        # By word: the durable value, then all later ones.
        self._values: dict[int, list[bytes]] = {}
        # By word: the value that the next fence makes durable.
        self._flushed: dict[int, int] = {}
        self._cut_at = cut_at
        self._kill_at = kill_at
        self._deaf = deaf
        self._fences = 0

    @property
    def path(self) -> Path:
        return Path("simulated")

    @property
    def size(self) -> int:
        return len(self._seen)

    @property
    def survives(self) -> Survives:
        return "power-cut"

    def write(self, offset: int, data: Buffer) -> None:
        self._require_power()
        content = memoryview(data).cast("B")
        check_range(offset, len(content), limit=self.size)
        if self.operations + 1 == self._kill_at:
            content = self._torn(offset, content)
        self.stored_bytes += len(content)
        self._seen[offset : offset + len(content)] = content
        for word in range(offset // WORD, -(-(offset + len(content)) // WORD)):
            values = self._values.setdefault(word, [_at(self._durable, word)])
            if (stored := _at(self._seen, word)) != values[-1]:
                values.append(stored)
        self._operate()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._require_power()
        view = buffer.cast("B")
        check_range(offset, len(view), limit=self.size)
        view[:] = self._seen[offset : offset + len(view)]

    def flush(self, offset: int, length: int) -> None:
        self._operate()
        check_range(offset, length, limit=self.size)
        words = range(offset // WORD, -(-(offset + length) // WORD))
        for word, values in self._values.items():
            if word in words:
                self._flushed[word] = len(values) - 1

    def fence(self) -> None:
        self._operate()
        self._fences += 1
        if self._deaf and (self._fences - 1) % self._deaf[1] == self._deaf[0]:
            return
        for word, newest in self._flushed.items():
            values = self._values[word] = self._values[word][newest:]
            self._durable[word * WORD : (word + 1) * WORD] = values[0]
            if len(values) == 1:
                del self._values[word]
        self._flushed.clear()

    def publish(self) -> None:
        self._require_power()
        self.published = True

    def close(self) -> None:
        self.closed = True

    def next_process(
        self,
        *,
        cut_at: int = 0,
        kill_at: int = 0,
        deaf: tuple[int, int] | None = None,
    ) -> CrashingRegion:
        """Returns the device as another process finds it, which this one leaves alone.

        What was flushed and not fenced is forgotten: no fence of another process'
        need cover it. Operations and fences count from the beginning again.
        """
        found = CrashingRegion(
            bytes(self._seen), cut_at=cut_at, kill_at=kill_at, deaf=deaf
        )
        found._durable = bytearray(self._durable)
        found._values = {word: list(values) for word, values in self._values.items()}
        return found

    def after_cut(self, seed: int) -> bytes:
        """Returns what lies on it afterwards: one of all the images that may.

        Seed 0 leaves only what is certain, seed 1 all that was stored.
        """
        generator = np.random.default_rng(seed)
        chance = generator.choice([0.02, 0.2, 0.5, 0.8, 0.98])
        image = bytearray(self._durable)
        for word, values in self._values.items():
            if seed == 0:
                value = values[0]
            elif seed == 1:
                value = values[-1]
            elif generator.random() < chance:
                value = values[generator.integers(len(values))]
            else:
                value = values[0]
            image[word * WORD : (word + 1) * WORD] = value
        return bytes(image)

    def _operate(self) -> None:
        self._require_power()
        self.operations += 1
        self._require_power()

    def _require_power(self) -> None:
        if self._cut_at and self.operations >= self._cut_at:
            raise PowerCut
        if self._kill_at and self.operations >= self._kill_at:
            raise ProcessDeath

    def _torn(self, offset: int, content: memoryview) -> memoryview:
        generator = np.random.default_rng(self._kill_at)
        stored = bytearray(self._seen[offset : offset + len(content)])
        for at in range(-(offset % WORD), len(content), WORD):
            if generator.random() < 0.5:
                part = slice(max(at, 0), at + WORD)
                stored[part] = content[part]
        return memoryview(stored)


def _at(image: bytearray, word: int) -> bytes:
    return bytes(image[word * WORD : (word + 1) * WORD])
