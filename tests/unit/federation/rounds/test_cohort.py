from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from tests.support.naive_rounds import rank

from cloister.federation.rounds.cohort import draw

NAMES = tuple(f"worker-{number}" for number in range(7))
ROUNDS = range(1, 2001)

names = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=12)
rounds = st.integers(1, 2**31)
seeds = st.integers(0, 2**63)


@given(names, st.integers(1, 12), seeds, rounds)
def test_as_many_are_drawn_as_there_are_seats_in_the_order_of_the_names(
    names: list[str], seats: int, seed: int, number: int
) -> None:
    drawn = draw(names, seats=seats, seed=seed, round_number=number)
    assert len(drawn) == min(seats, len(names))
    assert list(drawn) == [name for name in names if name in drawn]
    assert drawn == draw(names, seats=seats, seed=seed, round_number=number)


@given(names, st.integers(1, 12), seeds, rounds, st.data())
def test_who_is_drawn_does_not_depend_on_the_order_of_the_names(
    names: list[str], seats: int, seed: int, number: int, data: st.DataObject
) -> None:
    other = data.draw(st.permutations(names))
    assert set(draw(names, seats=seats, seed=seed, round_number=number)) == set(
        draw(other, seats=seats, seed=seed, round_number=number)
    )


@given(names, st.integers(1, 12), seeds, rounds, st.data())
def test_who_was_not_drawn_might_as_well_not_have_been_there(
    names: list[str], seats: int, seed: int, number: int, data: st.DataObject
) -> None:
    drawn = draw(names, seats=seats, seed=seed, round_number=number)
    gone = data.draw(st.sets(st.sampled_from(names))) if names else set[str]()
    left = [name for name in names if name in drawn or name not in gone]
    assert draw(left, seats=seats, seed=seed, round_number=number) == drawn


@given(names, st.integers(1, 11), seeds, rounds)
def test_one_more_seat_takes_nobodys_seat_away(
    names: list[str], seats: int, seed: int, number: int
) -> None:
    few = draw(names, seats=seats, seed=seed, round_number=number)
    more = draw(names, seats=seats + 1, seed=seed, round_number=number)
    assert set(few) <= set(more)


@given(st.permutations(NAMES), st.integers(0, 2**63), rounds)
def test_the_draw_is_the_one_that_is_written_down(
    names: list[str], seed: int, number: int
) -> None:
    lowest = sorted(names, key=lambda name: rank(name, seed, number))[:3]
    assert set(draw(names, seats=3, seed=seed, round_number=number)) == set(lowest)


def test_the_draw_of_one_round_is_this() -> None:
    drawn = draw(("alice", "bob", "carol", "dave"), seats=2, seed=7, round_number=1)
    assert drawn == ("bob", "dave")


def test_every_party_has_its_share_of_the_seats() -> None:
    seats = 3
    drawn = [draw(NAMES, seats=seats, seed=7, round_number=n) for n in ROUNDS]
    share = len(ROUNDS) * seats / len(NAMES)
    for name in NAMES:
        # Four standard deviations of a binomial count are 88 here.
        assert abs(sum(name in cohort for cohort in drawn) - share) < 90
    pair_share = share * (seats - 1) / (len(NAMES) - 1)
    for pair in itertools.combinations(NAMES, 2):
        assert abs(sum(set(pair) <= set(c) for c in drawn) - pair_share) < 70


def test_nobody_waits_long_for_a_seat() -> None:
    for name in NAMES:
        seated = [name in draw(NAMES, seats=3, seed=7, round_number=n) for n in ROUNDS]
        longest = max(len(list(g)) for has, g in itertools.groupby(seated) if not has)
        assert longest < 30


def test_rounds_and_seeds_are_drawn_apart() -> None:
    first = [draw(NAMES, seats=3, seed=7, round_number=n) for n in range(1, 101)]
    second = [draw(NAMES, seats=3, seed=8, round_number=n) for n in range(1, 101)]
    assert len(set(first)) > 25
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 15
