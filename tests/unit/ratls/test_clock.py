from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.federation_in_memory import START, HandClock

from cloister.errors import VerificationError
from cloister.ratls.certificate import CLOCK_TOLERANCE
from cloister.ratls.clock import FlooredClock

MINUTE = timedelta(minutes=1)
YEAR = timedelta(days=365)
SOURCE = "the consent of 'alice'"


class HandCounter:
    """A counter of seconds that somebody sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def host() -> HandClock:
    return HandClock()


@pytest.fixture
def counter() -> HandCounter:
    return HandCounter()


@pytest.fixture
def floored(host: HandClock, counter: HandCounter) -> FlooredClock:
    return FlooredClock(host, counter)


def refusal(clock: FlooredClock, to: datetime) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        clock.raise_floor(to, source=SOURCE)
    return caught.value


def test_without_a_floor_the_host_tells_the_time(
    floored: FlooredClock, host: HandClock
) -> None:
    assert floored() == START
    host.forward(YEAR)
    assert floored() == START + YEAR
    assert floored.behind() == timedelta(0)


def test_a_host_set_back_before_a_signed_time_is_not_believed(
    floored: FlooredClock, host: HandClock
) -> None:
    floored.raise_floor(START, source=SOURCE)
    host.now = START - YEAR
    assert floored() == START
    assert floored.behind() == YEAR


def test_a_stopped_host_clock_does_not_stop_time(
    floored: FlooredClock, counter: HandCounter
) -> None:
    floored.raise_floor(START, source=SOURCE)
    counter.seconds += 3600
    assert floored() == START + timedelta(hours=1)
    assert floored.behind() == timedelta(hours=1)


def test_a_counter_that_falls_does_not_bring_the_floor_down(
    floored: FlooredClock, host: HandClock, counter: HandCounter
) -> None:
    floored.raise_floor(START, source=SOURCE)
    host.now = START - YEAR
    counter.seconds -= 3600
    assert floored() == START


def test_an_older_signed_time_changes_nothing(
    floored: FlooredClock, host: HandClock, counter: HandCounter
) -> None:
    floored.raise_floor(START, source=SOURCE)
    counter.seconds += 60
    floored.raise_floor(START + MINUTE / 2, source=SOURCE)
    floored.trust_custodian(START - YEAR)
    host.now = START - YEAR
    counter.seconds += 60
    assert floored() == START + 2 * MINUTE


def test_time_passes_from_when_the_floor_was_raised(
    floored: FlooredClock, counter: HandCounter
) -> None:
    counter.seconds += 3600
    floored.raise_floor(START, source=SOURCE)
    assert floored() == START


def test_a_signed_time_may_be_ahead_by_the_tolerance(
    floored: FlooredClock,
) -> None:
    floored.raise_floor(START + CLOCK_TOLERANCE, source=SOURCE)
    assert floored() == START + CLOCK_TOLERANCE
    assert floored.behind() == CLOCK_TOLERANCE


def test_nobody_but_the_custodian_may_set_the_time_far_ahead(
    floored: FlooredClock,
) -> None:
    error = refusal(floored, START + CLOCK_TOLERANCE + timedelta(seconds=1))
    assert error.code == "clock-ahead"
    assert SOURCE in error.what
    assert floored() == START
    floored.trust_custodian(START + YEAR)
    assert floored() == START + YEAR
    assert floored.behind() == YEAR


def test_what_is_ahead_of_a_wrong_host_is_accepted_after_the_custodian_spoke(
    floored: FlooredClock, host: HandClock
) -> None:
    host.now = datetime(1970, 1, 1, tzinfo=UTC)
    assert refusal(floored, START).code == "clock-ahead"
    floored.trust_custodian(START - MINUTE)
    floored.raise_floor(START, source=SOURCE)
    assert floored() == START


def test_a_floor_at_the_end_of_all_dates_is_no_accident(
    floored: FlooredClock, counter: HandCounter
) -> None:
    last = datetime.max.replace(tzinfo=UTC)
    floored.trust_custodian(last)
    counter.seconds += 3600
    floored.raise_floor(last, source=SOURCE)
    assert floored() == last


def test_times_are_told_in_utc(floored: FlooredClock, host: HandClock) -> None:
    host.now = START.astimezone(timezone(timedelta(hours=5)))
    assert floored() == START
    assert floored().tzinfo is UTC
    floored.trust_custodian((START + YEAR).astimezone(timezone(timedelta(hours=-5))))
    assert floored().tzinfo is UTC


def test_a_time_without_a_zone_is_a_bug_of_the_caller(floored: FlooredClock) -> None:
    with pytest.raises(ValueError, match="zone"):
        floored.raise_floor(START.replace(tzinfo=None), source=SOURCE)
    with pytest.raises(ValueError, match="zone"):
        floored.trust_custodian(START.replace(tzinfo=None))


def test_the_real_counter_moves_a_stopped_clock(host: HandClock) -> None:
    real = FlooredClock(host)
    real.raise_floor(START, source=SOURCE)
    first = real()
    while real() == first:
        pass
    assert real() > first


# What may happen to a clock, in seconds: by the host, by time, by signatures.
HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from(["host", "counter", "floor", "custodian"]),
        st.integers(-(10**9), 10**9),
    ),
    max_size=30,
)


def times(
    clock: FlooredClock,
    host: HandClock,
    counter: HandCounter,
    happenings: list[tuple[str, int]],
) -> Iterator[datetime]:
    """Lets all of it happen; gives the time told after each."""
    for kind, seconds in happenings:
        if kind == "host":
            host.now = START + timedelta(seconds=seconds)
        elif kind == "counter":
            counter.seconds += abs(seconds) % 10_000
        elif kind == "custodian":
            clock.trust_custodian(START + timedelta(seconds=seconds))
        else:
            now = clock()
            to = START + timedelta(seconds=seconds)
            try:
                clock.raise_floor(to, source=SOURCE)
            except VerificationError:
                assert to > now + CLOCK_TOLERANCE
            else:
                assert to <= now + CLOCK_TOLERANCE
                assert clock() >= to
        yield clock()


@given(HAPPENINGS)
def test_whatever_the_host_does_time_never_goes_back(
    happenings: list[tuple[str, int]],
) -> None:
    host, counter = HandClock(), HandCounter()
    clock = FlooredClock(host, counter)
    told = [clock(), *times(clock, host, counter, happenings)]
    assert all(earlier <= later for earlier, later in pairwise(told))
    assert clock.behind() == told[-1] - host.now


@given(HAPPENINGS, st.integers(0, 10**6))
def test_whatever_the_host_does_time_since_a_signed_one_has_passed(
    happenings: list[tuple[str, int]], seconds: int
) -> None:
    host, counter = HandClock(), HandCounter()
    clock = FlooredClock(host, counter)
    list(times(clock, host, counter, happenings))
    signed, before = clock(), counter.seconds
    clock.raise_floor(signed, source=SOURCE)
    counter.seconds += seconds
    host.now = START - 100 * YEAR
    passed = timedelta(seconds=counter.seconds - before)
    assert clock() >= signed + passed


def test_threads_that_raise_the_floor_together_leave_the_newest(
    floored: FlooredClock, host: HandClock
) -> None:
    offsets = list(range(200))
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda n: floored.trust_custodian(START + timedelta(seconds=n)),
                offsets,
            )
        )
    host.now = START - YEAR
    assert floored() == START + timedelta(seconds=max(offsets))
