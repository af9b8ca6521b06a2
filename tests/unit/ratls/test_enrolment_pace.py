from __future__ import annotations

import pytest

from cloister.errors import ProtocolError
from cloister.ratls.enrolment_pace import EnrolmentPace


class Seconds:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(pace: EnrolmentPace, party: str) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        pace.take(party)
    return caught.value


def test_a_party_enrols_so_often_in_a_minute_and_no_more() -> None:
    seconds = Seconds()
    pace = EnrolmentPace(3, elapsed=seconds)
    for _ in range(3):
        pace.take("alice")
    error = refused(pace, "alice")
    assert error.code == "server-busy"
    assert error.expected == "at most 3 enrolments in a minute"
    seconds.now = 59.9
    refused(pace, "alice")
    seconds.now = 60.0
    for _ in range(3):
        pace.take("alice")
    refused(pace, "alice")


def test_one_party_takes_nothing_from_another() -> None:
    pace = EnrolmentPace(1, elapsed=Seconds())
    for party in ("alice", "bob", "carol"):
        pace.take(party)
        refused(pace, party)
