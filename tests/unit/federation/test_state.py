from __future__ import annotations

import pytest

from cloister.federation.state import MARK_SECONDS, MarkTimer


class Seconds:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


def test_the_first_model_of_a_server_carries_a_mark(seconds: Seconds) -> None:
    assert MarkTimer(seconds).take(final=False)


def test_a_mark_is_due_again_after_five_seconds_and_not_before(
    seconds: Seconds,
) -> None:
    timer = MarkTimer(seconds)
    assert timer.take(final=False)
    assert not timer.take(final=False)
    seconds.now += MARK_SECONDS - 0.1
    assert not timer.take(final=False)
    seconds.now += 0.1
    assert timer.take(final=False)
    assert not timer.take(final=False)


def test_the_final_model_always_carries_a_mark(seconds: Seconds) -> None:
    timer = MarkTimer(seconds)
    assert timer.take(final=False)
    assert timer.take(final=True)
