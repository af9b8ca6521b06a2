"""Rounds float32 to bfloat16 and widens it again, with NumPy's integers.

A bfloat16 is the upper half of a float32: the same sign and exponent, and 7 of its 23
fraction bits. NumPy has no such type (extensions that add one keep the interpreter's
lock), so its values are uint16 here. Rounding is to nearest, ties to even, subnormals
included, as PyTorch does it. There is one difference: a finite value that would round
to infinity becomes the largest finite bfloat16, so that rounding never makes a finite
update one that is refused. Infinity stays infinity and NaN becomes a quiet NaN: neither
may pass for a number on the other side.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Halves = NDArray[np.uint16]

_SIGN: Final = 0x8000
_LARGEST: Final = 0x7F7F
_INFINITY: Final = 0x7F80
_QUIET_NAN: Final = 0x7FC0
# Half a step above the largest bfloat16; from here on rounding leads to infinity.
_LEAST_OVERFLOW: Final = 0x7F7F_8000
_LEAST_OVERFLOW_VALUE: Final = float(np.uint32(_LEAST_OVERFLOW).view(np.float32))


def narrow(values: Vector, *, out: Halves, scratch: NDArray[np.uint32]) -> None:
    """Rounds `values` into `out`.

    Args:
        values: Fast if they and the scratch fit a core's cache: (n,).
        out: Receives them: (n,).
        scratch: Overwritten: at least (n,).
    """
    bits = values.view(np.uint32)
    rounded = scratch[: len(values)]
    # Adding 0x7FFF carries into the upper half for all that lies above a tie, and one
    # more for a tie whose upper half is odd.
    np.right_shift(bits, 16, out=rounded)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, bits, out=rounded)
    np.add(rounded, 0x7FFF, out=rounded)
    np.right_shift(rounded, 16, out=rounded)
    np.copyto(out, rounded, casting="unsafe")
    if values.size and not (
        values.max() < _LEAST_OVERFLOW_VALUE and values.min() > -_LEAST_OVERFLOW_VALUE
    ):
        _mend(bits, out)


def widen(halves: Halves, *, out: Vector) -> None:
    """Writes the float32 that each bfloat16 stands for: exact.

    Args:
        halves: Fast if they and `out` fit a core's cache: (n,).
        out: Receives them: (n,).
    """
    bits = out.view(np.uint32)
    bits[...] = halves
    np.left_shift(bits, 16, out=bits)


def magnitudes_within(halves: Halves, *, limit: float) -> bool:
    """Returns whether none is larger than `limit`, NaN or infinite.

    Bit patterns rise with the magnitude, and NaN lies above infinity. So the greatest
    pattern as a signed number belongs to the greatest positive value, and as an
    unsigned one to the greatest negative value, if there is any.

    Args:
        halves: Any number of bfloat16: (n,).
        limit: At least 0, finite as float32.
    """
    if not halves.size:
        return True
    # Cut off, not rounded: nothing above the limit may pass.
    pattern = int(np.float32(limit).view(np.uint32)) >> 16
    return bool(
        halves.view(np.int16).max() <= pattern and halves.max() <= (_SIGN | pattern)
    )


def _mend(bits: NDArray[np.uint32], out: Halves) -> None:
    """Puts right what became infinite, or wrapped around, in rounding."""
    magnitude = bits & 0x7FFF_FFFF
    where = np.flatnonzero(magnitude >= _LEAST_OVERFLOW)
    magnitude = magnitude[where]
    infinity = _INFINITY << 16
    right = np.where(magnitude < infinity, _LARGEST, _QUIET_NAN)
    right[magnitude == infinity] = _INFINITY
    out[where] = right | (bits[where] >> 16 & _SIGN)
