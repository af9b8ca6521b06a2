"""A shuffled order that is computed where it is asked for, and never lies in memory.

An alternating Feistel network (J. Black and P. Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002) over pairs of which there are hardly more than numbers: its steps are
modular additions, each undone by subtraction, so it is a permutation. What falls
outside goes through again until it is inside. Integers only: the same order on every
machine.

What this module does not do: hide the order. It is shuffled well, and not secret.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

ROUNDS: Final = 8  # four on each side
MAX_SIZE: Final = 2**53  # a product of both sides is far from overflowing

# David Stafford's mix 13, as in SplitMix64.
_SHIFTS = tuple(np.array([shift], np.uint64) for shift in (30, 27, 31))
_FACTORS = tuple(
    np.array([factor], np.uint64) for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class Permutation:
    """One order of the numbers from 0 to below `size`.

    Args:
        size: How many; 1 to `MAX_SIZE`.
        seed: Decides which order; used up by this.
    """

    __slots__ = ("_keys", "_left", "_right", "_size")

    def __init__(self, size: int, *, seed: np.random.SeedSequence) -> None:
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"a permutation is of 1 to {MAX_SIZE} numbers")
        self._size = np.uint64(size)
        # At most `left` numbers more than wanted: hardly one goes through twice.
        left = math.isqrt(size - 1) + 1
        self._left = np.uint64(left)
        self._right = np.uint64(-(-size // left))
        self._keys = seed.generate_state(ROUNDS, np.uint64).reshape(ROUNDS, 1)

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the numbers at these places of the order: of the shape (places,).

        Args:
            places: From 0 to below the size.

        Raises:
            IndexError: If there is no such place; a bug of the caller.
        """
        if len(places) and not 0 <= places.min() <= places.max() < self._size:
            raise IndexError(f"the order has {self._size} places")
        numbers = self._once(places.astype(np.uint64))
        outside = np.flatnonzero(numbers >= self._size)
        while outside.size:
            numbers[outside] = self._once(numbers[outside])
            outside = outside[numbers[outside] >= self._size]
        return numbers.astype(np.int64)

    def _once(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = np.divmod(numbers, self._right)
        for even, odd in zip(self._keys[::2], self._keys[1::2], strict=True):
            left = (left + _mixed(right ^ even) % self._left) % self._left
            right = (right + _mixed(left ^ odd) % self._right) % self._right
        return left * self._right + right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns 64 bits that each depend on all bits of the value."""
    values = (values ^ values >> _SHIFTS[0]) * _FACTORS[0]
    values = (values ^ values >> _SHIFTS[1]) * _FACTORS[1]
    return values ^ values >> _SHIFTS[2]
