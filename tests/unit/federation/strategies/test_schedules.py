from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.federation.strategies.schedules import (
    Constant,
    Cosine,
    LearningRate,
    Poly,
    Schedule,
    Step,
)

Made = Callable[[int, int], Schedule]
MADE: dict[str, Made] = {
    "constant": lambda _, warmup: Constant(warmup_rounds=warmup),
    "step": lambda _, warmup: Step(every_rounds=3, ratio=0.5, warmup_rounds=warmup),
    "cosine": lambda rounds, warmup: Cosine(rounds=rounds, warmup_rounds=warmup),
    "poly": lambda rounds, warmup: Poly(
        rounds=rounds, power=2.0, end_fraction=0.1, warmup_rounds=warmup
    ),
}


def factors(schedule: Schedule, rounds: int) -> list[float]:
    return [schedule.factor(number) for number in range(1, rounds + 1)]


def test_a_rate_is_its_share_of_the_peak() -> None:
    rate = LearningRate(peak=0.4, schedule=Constant(warmup_rounds=4))
    assert [rate.at(n) for n in range(1, 7)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]
    )


def test_steps_count_from_the_end_of_the_warmup() -> None:
    schedule = Step(every_rounds=2, ratio=0.5, warmup_rounds=2)
    assert factors(schedule, 8) == [0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_a_cosine_begins_at_its_peak_and_falls_by_half_in_the_middle() -> None:
    values = factors(Cosine(rounds=8), 8)
    assert values[0] == 1.0
    assert values[4] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(values))
    assert values[-1] > 0


def test_a_poly_of_power_one_is_a_straight_line_to_its_end() -> None:
    values = factors(Poly(rounds=4, end_fraction=0.2), 5)
    assert values == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_a_higher_power_falls_faster() -> None:
    assert Poly(rounds=10, power=2.0).factor(6) == pytest.approx(0.25)


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_the_warmup_ends_at_the_peak(made: Made) -> None:
    values = factors(made(20, 5), 20)
    assert values[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert values[4] == values[5] == 1.0


@given(
    st.sampled_from(list(MADE.values())),
    st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
)
def test_every_factor_is_positive_and_none_above_one(
    made: Made, lengths: tuple[int, int]
) -> None:
    rounds, warmup_rounds = lengths
    for value in factors(made(rounds, warmup_rounds), rounds):
        assert 0 < value <= 1
