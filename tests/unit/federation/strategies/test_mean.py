from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloister.federation.strategies.mean import weighted_mean


@given(st.integers(0, 2**32), st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_the_mean_is_weighted(seed: int, weights: list[int]) -> None:
    generator = np.random.default_rng(seed)
    updates = [generator.normal(size=7) for _ in weights]
    expected = np.average(updates, axis=0, weights=weights)
    np.testing.assert_allclose(weighted_mean(updates, weights), expected, atol=1e-12)
    narrow = [update.astype(np.float32) for update in updates]
    result = weighted_mean(narrow, weights)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_its_arguments_stay_as_they_are() -> None:
    first, second = np.ones(3), np.zeros(3)
    weighted_mean([first, second], [1, 3])
    np.testing.assert_array_equal(first, np.ones(3))
    np.testing.assert_array_equal(second, np.zeros(3))


def test_the_mean_of_one_is_itself_to_the_bit() -> None:
    update = np.random.default_rng(0).normal(size=9).astype(np.float32)
    assert weighted_mean([update], [17]).tobytes() == update.tobytes()


def test_the_mean_of_nothing_is_empty() -> None:
    empty = np.empty(0, np.float64)
    assert weighted_mean([empty, empty], [1, 2]).shape == (0,)
