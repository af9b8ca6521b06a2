from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.federation.sampling import IN_MEMORY_EXAMPLES, Sampler


def sampler(
    *, examples: int = 10, batch_size: int = 4, seed: int = 7, party: str = "alice"
) -> Sampler:
    return Sampler(examples=examples, batch_size=batch_size, seed=seed, party=party)


@given(
    examples=st.integers(1, 30),
    batch_size=st.integers(1, 50),
    epochs=st.integers(1, 4),
)
def test_every_example_comes_once_an_epoch(
    examples: int, batch_size: int, epochs: int
) -> None:
    drawn = sampler(examples=examples, batch_size=batch_size)
    rounds = -(-examples * epochs // batch_size)
    row = np.concatenate([drawn.indices(r) for r in range(1, rounds + 1)])
    for epoch in range(epochs):
        part = row[epoch * examples : (epoch + 1) * examples]
        assert sorted(part.tolist()) == list(range(examples))


@given(rounds=st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_a_round_draws_the_same_whatever_was_drawn_before(rounds: list[int]) -> None:
    used = sampler()
    for number in rounds:
        assert np.array_equal(used.indices(number), sampler().indices(number))


def test_parties_seeds_and_epochs_draw_differently() -> None:
    orders = [
        sampler(examples=100, batch_size=100, party=party, seed=seed).indices(number)
        for party, seed, number in (
            ("alice", 7, 1),
            ("bob", 7, 1),
            ("alice", 8, 1),
            ("alice", 7, 2),
        )
    ]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_a_rounds_own_randomness_can_be_had_again() -> None:
    first, again = (sampler().augmentation(3).random(4) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, sampler().augmentation(4).random(4))
    assert not np.array_equal(first, sampler(party="bob").augmentation(3).random(4))


def test_the_draw_is_fixed_for_all_time() -> None:
    # A change here would break the resumption of every run in progress.
    assert sampler().indices(1).tolist() == [6, 7, 0, 2]


@pytest.mark.parametrize(("examples", "batch_size"), [(0, 1), (1, 0)])
def test_nothing_to_draw_is_refused(examples: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        sampler(examples=examples, batch_size=batch_size)


MANY = IN_MEMORY_EXAMPLES + 1


def test_of_many_examples_every_one_comes_once_an_epoch() -> None:
    drawn = sampler(examples=MANY, batch_size=2**18)
    row = np.concatenate([drawn.indices(r) for r in range(1, 6)])
    assert (np.bincount(row[:MANY], minlength=MANY) == 1).all()
    # The next epoch begins in the middle of a batch, and is another order.
    again = np.concatenate([drawn.indices(r) for r in range(5, 10)])
    start = MANY - 4 * 2**18
    second = again[start : start + MANY]
    assert (np.bincount(second, minlength=MANY) == 1).all()
    assert (second != row[:MANY]).mean() > 0.99


@given(rounds=st.lists(st.integers(1, 10**9), min_size=1, max_size=5))
def test_of_many_examples_a_round_draws_the_same_too(rounds: list[int]) -> None:
    used = sampler(examples=10**10)
    for number in rounds:
        again = sampler(examples=10**10).indices(number)
        assert np.array_equal(used.indices(number), again)


def test_the_draw_of_many_takes_no_more_memory_than_a_batch() -> None:
    sampler(examples=MANY).indices(1)
    tracemalloc.start()
    try:
        drawn = sampler(examples=2**40, batch_size=128)
        for number in (1, 2, 2**35):
            drawn.indices(number)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_the_draw_of_many_is_fixed_for_all_time() -> None:
    assert sampler(examples=MANY).indices(1).tolist() == [
        566478,
        1040776,
        76982,
        430784,
    ]


def test_up_to_a_million_examples_are_drawn_as_ever() -> None:
    drawn = sampler(examples=IN_MEMORY_EXAMPLES)
    assert drawn.indices(1).tolist() == [1011101, 974205, 256385, 580395]
