from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloister.federation.permutation import MAX_SIZE, Permutation


def permutation(size: int, seed: int = 7) -> Permutation:
    return Permutation(size, seed=np.random.SeedSequence(seed))


def order(size: int, seed: int = 7) -> NDArray[np.int64]:
    return permutation(size, seed).at(np.arange(size))


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64))
def test_every_number_comes_exactly_once(size: int, seed: int) -> None:
    assert sorted(order(size, seed).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [2**20 + 1, 10**6 + 3, 1024**2])
def test_every_number_comes_exactly_once_of_a_million(size: int) -> None:
    assert (np.bincount(order(size), minlength=size) == 1).all()


@given(
    size=st.integers(2**20, MAX_SIZE),
    places=st.lists(st.integers(0, 2**20 - 1), min_size=2, max_size=50, unique=True),
)
def test_no_number_of_many_comes_twice(size: int, places: list[int]) -> None:
    # From either end of the order.
    numbers = permutation(size).at(np.array(places + [size - 1 - p for p in places]))
    distinct = len({*places, *(size - 1 - p for p in places)})
    assert len(set(numbers.tolist())) == distinct
    assert 0 <= numbers.min() <= numbers.max() < size


@given(st.lists(st.integers(0, 10**9 - 1), max_size=20))
def test_a_place_has_one_number_whatever_is_asked_with_it(places: list[int]) -> None:
    made = permutation(10**9)
    together = made.at(np.array(places, np.int64)).tolist()
    assert together == [int(made.at(np.array([place]))[0]) for place in places]


@pytest.mark.parametrize("size", [1, 2, 10**6])
@pytest.mark.parametrize("past", [0, 1])
def test_places_that_are_not_there_are_refused(size: int, past: int) -> None:
    with pytest.raises(IndexError):
        permutation(size).at(np.array([0, size + past]))
    with pytest.raises(IndexError):
        permutation(size).at(np.array([-1 - past]))


@pytest.mark.parametrize("size", [0, -1, MAX_SIZE + 1])
def test_a_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="permutation"):
        permutation(size)


def chi_square(counts: NDArray[np.int64]) -> float:
    """Returns how far counts are from even, in standard deviations of chance."""
    expected = counts.sum() / counts.size
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.size - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_whatever_is_near_in_the_set_is_anywhere_in_the_order() -> None:
    # Blocks of 2^14 places against blocks of 2^14 numbers: 64 times 64 cells.
    size = 2**20
    numbers = order(size)
    cells = np.arange(size) // 2**14 * 64 + numbers // 2**14
    assert abs(chi_square(np.bincount(cells, minlength=64 * 64))) < 5


def test_the_next_number_says_nothing_of_the_one_after() -> None:
    size = 2**20
    numbers = order(size)
    steps = (np.diff(numbers) % size) // 2**10
    assert abs(chi_square(np.bincount(steps, minlength=2**10))) < 5
    # About one neighbour stays a neighbour, as in any fair order.
    assert int((np.abs(np.diff(numbers)) == 1).sum()) < 15


def test_low_and_high_digits_of_numbers_are_even_in_a_batch() -> None:
    made = permutation(10**12)
    numbers = made.at(np.arange(2**16))
    for part in (numbers % 64, numbers // (10**12 // 64 + 1)):
        assert abs(chi_square(np.bincount(part, minlength=64))) < 5


def test_every_order_of_few_comes_up_about_as_often() -> None:
    orders = [tuple(order(4, seed).tolist()) for seed in range(2400)]
    counts = np.array([orders.count(one) for one in set(orders)])
    assert counts.size == 24
    assert chi_square(counts) < 5


def test_seeds_give_orders_that_have_nothing_in_common() -> None:
    size = 2**20
    same = int((order(size, 1) == order(size, 2)).sum())
    assert same < 10  # one, in a fair pair


def test_memory_and_time_follow_the_batch_and_not_the_set() -> None:
    permutation(10).at(np.arange(10))  # NumPy's own first use
    tracemalloc.start()
    try:
        began = time.perf_counter()
        for size in (2**21, 2**40, MAX_SIZE):
            permutation(size).at(np.arange(128))
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
        assert time.perf_counter() - began < 1
    finally:
        tracemalloc.stop()


def by_hand(size: int, seed: int, place: int) -> int:
    """Returns a number of the order, one by one and in Python's integers."""
    keys = np.random.SeedSequence(seed).generate_state(8, np.uint64).tolist()
    left_size = math.isqrt(size - 1) + 1
    right_size = -(-size // left_size)

    def mixed(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    while True:
        left, right = divmod(place, right_size)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            left = (left + mixed(right ^ even)) % left_size
            right = (right + mixed(left ^ odd)) % right_size
        place = left * right_size + right
        if place < size:
            return place


@given(size=st.integers(1, MAX_SIZE), seed=st.integers(0, 2**64), at=st.floats(0, 1))
def test_the_order_is_what_it_is_said_to_be(size: int, seed: int, at: float) -> None:
    place = min(int(at * size), size - 1)
    numbers = permutation(size, seed).at(np.array([place]))
    assert numbers.tolist() == [by_hand(size, seed, place)]


def test_the_order_is_fixed_for_all_time() -> None:
    # A change here would break the resumption of every run in progress.
    numbers = permutation(2**20 + 1).at(np.arange(4)).tolist()
    assert numbers == [484989, 157584, 1046235, 558171]
