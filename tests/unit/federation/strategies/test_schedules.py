from __future__ import annotations

import itertools
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.federation.strategies.schedules import LearningRate

NAMES: tuple[Literal["constant", "cosine"], ...] = ("constant", "cosine")


def rates(
    name: Literal["constant", "cosine"], *, rounds: int, warmup_rounds: int
) -> list[float]:
    schedule = LearningRate(
        name=name, peak=0.4, rounds=rounds, warmup_rounds=warmup_rounds
    )
    return [schedule.at(number) for number in range(1, rounds + 1)]


def test_a_constant_rate_is_constant_after_its_warmup() -> None:
    assert rates("constant", rounds=6, warmup_rounds=4) == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]
    )


def test_a_cosine_begins_at_its_peak_and_falls_by_half_in_the_middle() -> None:
    values = rates("cosine", rounds=8, warmup_rounds=0)
    assert values[0] == 0.4
    assert values[4] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(values))
    assert values[-1] > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_warmup_ends_at_the_peak(name: Literal["constant", "cosine"]) -> None:
    values = rates(name, rounds=20, warmup_rounds=5)
    assert values[4] == values[5] == pytest.approx(0.4)


@given(
    st.sampled_from(NAMES),
    st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
)
def test_every_rate_is_positive_and_none_above_the_peak(
    name: Literal["constant", "cosine"], lengths: tuple[int, int]
) -> None:
    rounds, warmup_rounds = lengths
    for value in rates(name, rounds=rounds, warmup_rounds=warmup_rounds):
        assert 0 < value <= 0.4
