from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloister.federation.bfloat16 import magnitudes_within, narrow, widen

UPPER = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
# A tie, its neighbours, both ends, and some in between.
LOWER = (0, 1, 0x3FFF, 0x7FFF, 0x8000, 0x8001, 0xC000, 0xFFFF)


def with_lower(bits: NDArray[np.uint32], lower: int) -> NDArray[np.uint32]:
    return np.bitwise_or(bits, lower, dtype=np.uint32)


def rounded(bits: NDArray[np.uint32]) -> NDArray[np.uint16]:
    out = np.empty(bits.shape, np.uint16)
    narrow(bits.view(np.float32), out=out, scratch=np.empty(bits.shape, np.uint32))
    return out


def nearest(bits: int) -> int:
    """The rule of IEEE 754, in Python's integers, with our end of the range."""
    sign, magnitude = bits & 0x8000_0000, bits & 0x7FFF_FFFF
    if magnitude > 0x7F80_0000:
        return sign >> 16 | 0x7FC0
    if magnitude == 0x7F80_0000:
        return sign >> 16 | 0x7F80
    below, rest = divmod(magnitude, 2**16)
    above = rest > 0x8000 or (rest == 0x8000 and below % 2 == 1)
    return sign >> 16 | min(below + above, 0x7F7F)


@pytest.mark.parametrize("lower", LOWER)
def test_every_upper_half_rounds_to_nearest_and_ties_to_even(lower: int) -> None:
    bits = with_lower(UPPER, lower)
    assert rounded(bits).tolist() == [nearest(int(b)) for b in bits]


@pytest.mark.parametrize("lower", LOWER)
def test_rounding_is_torchs_but_for_nan_and_the_end_of_the_range(lower: int) -> None:
    bits = with_lower(UPPER, lower)
    values = torch.from_numpy(bits.view(np.float32))
    theirs = values.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    finite = np.isfinite(bits.view(np.float32))
    ours = rounded(bits)
    differ = finite & (ours != theirs)
    assert set((theirs[differ] & 0x7FFF).tolist()) <= {0x7F80}
    assert set((ours[differ] & 0x7FFF).tolist()) <= {0x7F7F}
    infinite = np.isinf(bits.view(np.float32))
    assert np.array_equal(ours[infinite], theirs[infinite])


@given(st.lists(st.integers(0, 2**32 - 1), max_size=200))
def test_any_values_round_as_the_rule_says(patterns: list[int]) -> None:
    assert rounded(np.array(patterns, np.uint32)).tolist() == [*map(nearest, patterns)]


def test_widening_and_rounding_again_changes_no_number() -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    wide = np.full(2**16, np.nan, np.float32)
    widen(halves, out=wide)
    assert np.array_equal(wide.view(np.uint32), UPPER)
    numbers = ~np.isnan(wide)
    assert np.array_equal(rounded(wide.view(np.uint32))[numbers], halves[numbers])


def test_widening_is_torchs() -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    wide = np.empty(2**16, np.float32)
    widen(halves, out=wide)
    theirs = torch.from_numpy(halves.view(np.int16)).view(torch.bfloat16).float()
    numbers = ~np.isnan(wide)
    assert np.array_equal(theirs.numpy()[numbers], wide[numbers])


def test_no_nan_becomes_a_number() -> None:
    patterns = UPPER[np.isnan(with_lower(UPPER, 1).view(np.float32))]
    for lower in LOWER[1:]:
        wide = np.empty(len(patterns), np.float32)
        widen(rounded(with_lower(patterns, lower)), out=wide)
        assert np.isnan(wide).all()


@pytest.mark.parametrize("limit", [0.0, 1.0, 1024.0, float(np.finfo(np.float32).max)])
def test_every_pattern_is_within_a_limit_or_beyond_it(limit: float) -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    wide = np.empty(2**16, np.float32)
    widen(halves, out=wide)
    right = np.abs(wide) <= limit
    assert magnitudes_within(halves[right], limit=limit)
    # The nearest to the limit beyond it, and some all over.
    beyond = halves[~right]
    beyond = beyond[(beyond % 97 == 0) | (np.arange(len(beyond)) % 2**14 < 50)]
    for pattern in (*beyond, *halves[~right][-50:]):
        one = np.array([0, pattern, 0], np.uint16)
        assert not magnitudes_within(one, limit=limit)


def test_a_limit_between_two_bfloat16_lets_nothing_larger_pass() -> None:
    one, next_one = np.array([0x3F80], np.uint16), np.array([0x3F81], np.uint16)
    assert magnitudes_within(one, limit=1.005)
    assert not magnitudes_within(next_one, limit=1.005)


def test_nothing_is_within_any_limit() -> None:
    assert magnitudes_within(np.empty(0, np.uint16), limit=0.0)
    narrow(
        np.empty(0, np.float32),
        out=np.empty(0, np.uint16),
        scratch=np.empty(0, np.uint32),
    )
