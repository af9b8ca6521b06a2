from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.federation.sampling import Sampler


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
