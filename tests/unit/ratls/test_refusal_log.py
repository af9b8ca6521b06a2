from __future__ import annotations

import pytest
from tests.support.recorded_log import RecordedLog

from cloister.ratls.refusal_log import TOLD_PER_MINUTE, RefusalLog

MINUTE = 60.0


class Counter:
    """Seconds that somebody counts."""

    def __init__(self) -> None:
        self.seconds = 1e6

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def recorded() -> RecordedLog:
    return RecordedLog()


@pytest.fixture
def refusals(recorded: RecordedLog, counter: Counter) -> RefusalLog:
    return RefusalLog(recorded.logger(), elapsed=counter)


def flood(refusals: RefusalLog, count: int) -> None:
    for number in range(count):
        refusals.warning("refused", code=str(number))


def test_a_few_refusals_are_told_one_by_one(
    refusals: RefusalLog, recorded: RecordedLog
) -> None:
    flood(refusals, TOLD_PER_MINUTE)
    refusals.close()
    told = recorded.named("refused")
    assert [line["code"] for line in told] == [str(n) for n in range(TOLD_PER_MINUTE)]
    assert {line["level"] for line in told} == {"warning"}
    assert recorded.named("refusals-left-out") == []


def test_a_flood_fills_no_log_and_is_counted(
    refusals: RefusalLog, recorded: RecordedLog
) -> None:
    flood(refusals, TOLD_PER_MINUTE + 10_000)
    assert len(recorded.events) == TOLD_PER_MINUTE
    assert refusals.untold == 10_000
    refusals.close()
    [left_out] = recorded.named("refusals-left-out")
    assert left_out["count"] == 10_000
    refusals.close()
    assert len(recorded.events) == TOLD_PER_MINUTE + 1


def test_the_next_minute_begins_with_the_count_of_the_last(
    refusals: RefusalLog, recorded: RecordedLog, counter: Counter
) -> None:
    flood(refusals, TOLD_PER_MINUTE + 3)
    counter.seconds += MINUTE
    flood(refusals, 1)
    assert [line["event"] for line in recorded.events[-2:]] == [
        "refusals-left-out",
        "refused",
    ]
    assert recorded.named("refusals-left-out")[0]["count"] == 3
    flood(refusals, TOLD_PER_MINUTE)
    assert refusals.untold == 1


def test_a_minute_is_not_over_before_its_end(
    refusals: RefusalLog, recorded: RecordedLog, counter: Counter
) -> None:
    flood(refusals, TOLD_PER_MINUTE)
    counter.seconds += MINUTE - 0.001
    flood(refusals, 1)
    assert len(recorded.events) == TOLD_PER_MINUTE


def test_a_flood_of_days_costs_a_line_for_every_refusal_told_and_one_a_minute(
    refusals: RefusalLog, recorded: RecordedLog, counter: Counter
) -> None:
    for _ in range(10):
        flood(refusals, 500)
        counter.seconds += MINUTE
    refusals.close()
    assert len(recorded.events) == 10 * (TOLD_PER_MINUTE + 1)
    counts = [line["count"] for line in recorded.named("refusals-left-out")]
    assert counts == 10 * [500 - TOLD_PER_MINUTE]
