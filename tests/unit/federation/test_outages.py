"""How often a worker may lose its server, and how soon it looks for the next one."""

from __future__ import annotations

import pytest

from cloister.errors import ProtocolError
from cloister.federation.outages import (
    FIRST_PAUSE_SECONDS,
    LAST_PAUSE_SECONDS,
    MOST_LOSSES,
    Outages,
)

PATIENCE_SECONDS = 60.0
GONE = ProtocolError("the server went away", code="server-gone")


class HandTimer:
    """A counter of seconds that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def timer() -> HandTimer:
    return HandTimer()


@pytest.fixture
def outages(timer: HandTimer) -> Outages:
    return Outages(PATIENCE_SECONDS, elapsed=timer)


def lose(outages: Outages, times: int) -> list[float]:
    """Returns the pauses of as many losses."""
    pauses = []
    for _ in range(times):
        pauses.append(outages.lost(GONE))
        outages.admitted()
    return pauses


def test_a_server_that_went_away_is_looked_for_at_once_and_then_less_and_less_often(
    outages: Outages,
) -> None:
    pauses = lose(outages, MOST_LOSSES)
    assert pauses[:3] == [0.0, FIRST_PAUSE_SECONDS, 2 * FIRST_PAUSE_SECONDS]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_PAUSE_SECONDS
    assert sum(pauses) < 40


def test_a_model_begins_the_pauses_anew_and_a_new_round_the_count(
    outages: Outages,
) -> None:
    lose(outages, MOST_LOSSES)
    outages.met(1)
    assert lose(outages, MOST_LOSSES)[0] == 0.0
    # The same round again, or an earlier one, is no step forward.
    outages.met(1)
    with pytest.raises(ProtocolError) as caught:
        outages.lost(GONE)
    assert caught.value is GONE


def test_rounds_that_are_done_again_are_no_step_forward(outages: Outages) -> None:
    outages.met(5)
    for lost in range(MOST_LOSSES):
        outages.lost(GONE)
        outages.met(3 + lost % 3)
    with pytest.raises(ProtocolError):
        outages.lost(GONE)


def test_a_line_that_held_for_long_may_break_as_often_as_it_likes(
    outages: Outages, timer: HandTimer
) -> None:
    for _ in range(3 * MOST_LOSSES):
        timer.now += PATIENCE_SECONDS
        outages.lost(GONE)
        outages.admitted()
        outages.same_again()


def test_servers_that_die_without_a_new_round_may_not_however_long_each_lived(
    outages: Outages, timer: HandTimer
) -> None:
    for _ in range(MOST_LOSSES):
        timer.now += PATIENCE_SECONDS
        lose(outages, 1)
    with pytest.raises(ProtocolError):
        outages.lost(GONE)


def test_a_line_that_breaks_at_once_may_not_either(
    outages: Outages, timer: HandTimer
) -> None:
    for _ in range(MOST_LOSSES):
        timer.now += PATIENCE_SECONDS / 2
        lose(outages, 1)
        outages.same_again()
    with pytest.raises(ProtocolError):
        outages.lost(GONE)
