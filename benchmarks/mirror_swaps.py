"""Swaps a second in transactions of several, in the clear and sealed.

The benchmark of Romulus (SPAA 2018) and Plinius (DSN 2021): two elements of a 10 MB
array change places, at random; so many swaps are one transaction. The same swaps, in
turns, on twin copies in the clear and on a sealed mirror of the same array. In the
clear every swap is stored at once; sealed, it changes memory, and each block that was
touched is sealed and stored once, at the end: so large transactions gain.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from cloister.storage.keys import new_key
from cloister.storage.mirror.medium import open_region
from cloister.storage.mirror.parts_mirror import PartsMirror
from cloister.storage.mirror.subject import ArraySpec, MirrorPlace, Subject
from cloister.storage.mirror.twin import TwinRegion
from reporting import Figure

ELEMENTS: Final = 1_250_000
WORD: Final = 8
SWAPS: Final = (1, 2, 8, 32, 128, 512, 2048)
_TURNS: Final = 4


class PlainSwaps:
    """Swaps on twin copies.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        capacity = ELEMENTS * WORD
        size = TwinRegion.region_bytes(capacity=capacity)
        self._region = open_region(path, size=size, new=True, medium="file")
        self._twin = TwinRegion.format(self._region, capacity=capacity, header=b"")
        self._region.publish()
        with self._twin.transaction() as transaction:
            transaction.write(0, np.arange(ELEMENTS, dtype="<i8").data)
        self._one, self._other = memoryview(bytearray(8)), memoryview(bytearray(8))

    def swap(self, pairs: list[tuple[int, int]]) -> None:
        """Makes one transaction."""
        with self._twin.transaction() as transaction:
            for one, other in pairs:
                self._twin.read_into(one * WORD, self._one)
                self._twin.read_into(other * WORD, self._other)
                transaction.write(one * WORD, self._other)
                transaction.write(other * WORD, self._one)

    def close(self) -> None:
        """Gives the file back."""
        self._region.close()


class SealedSwaps:
    """Swaps on a sealed mirror.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        subject = Subject(
            run_id="benchmark/1", plan_hash=bytes(32), role="server", party="alice"
        )
        self._mirror = PartsMirror.create(
            MirrorPlace(path=path, key=new_key(), subject=subject),
            [ArraySpec(name="all", shape=(ELEMENTS,), dtype="<i8")],
        )
        with self._mirror.transaction() as transaction:
            transaction.write("all", 0, np.arange(ELEMENTS, dtype="<i8"))
        self._all = self._mirror.read("all")

    def swap(self, pairs: list[tuple[int, int]]) -> None:
        """Makes one transaction."""
        with self._mirror.transaction() as transaction:
            for one, other in pairs:
                former = self._all[one : one + 1].copy()
                transaction.write("all", one, self._all[other : other + 1])
                transaction.write("all", other, former)

    def close(self) -> None:
        """Gives the file back."""
        self._mirror.close()


def curve(directory: Path, *, seconds: float) -> list[Figure]:
    """Returns swaps a second, for each size of transactions."""
    plain, sealed = PlainSwaps(directory / "plain"), SealedSwaps(directory / "sealed")
    figures: list[Figure] = []
    for swaps in SWAPS:
        rates = _rates(swaps, seconds, plain.swap, sealed.swap)
        for name, rate in zip(("in the clear", "sealed"), rates, strict=True):
            figures.append(
                Figure(
                    name=f"{swaps} swaps a transaction, {name}",
                    value=rate,
                    unit="swaps/s",
                )
            )
    plain.close()
    sealed.close()
    return figures


def _rates(
    swaps: int,
    seconds: float,
    *ways: Callable[[list[tuple[int, int]]], None],
) -> list[float]:
    generator = np.random.default_rng(swaps)
    spent, done = [0.0] * len(ways), [0] * len(ways)
    for _ in range(_TURNS):
        for number, swap in enumerate(ways):
            until = spent[number] + seconds / _TURNS
            while spent[number] < until:
                drawn = generator.integers(0, ELEMENTS, (swaps, 2)).tolist()
                pairs = [(one, other) for one, other in drawn]
                began = time.perf_counter()
                swap(pairs)
                spent[number] += time.perf_counter() - began
                done[number] += swaps
    return [count / took for count, took in zip(done, spent, strict=True)]
