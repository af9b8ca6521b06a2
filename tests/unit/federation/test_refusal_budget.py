from __future__ import annotations

from cloister.federation.refusal_budget import RECORDED_PER_MINUTE, RefusalBudget


class Seconds:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(budget: RefusalBudget, party: str, times: int) -> int:
    """Returns how many of so many refusals are recorded."""
    return sum(budget.admits(party) for _ in range(times))


def test_so_many_a_minute_are_recorded_and_the_others_counted() -> None:
    seconds = Seconds()
    budget = RefusalBudget(seconds)
    assert taken(budget, "alice", RECORDED_PER_MINUTE + 7) == RECORDED_PER_MINUTE
    seconds.now = 59.9
    assert budget.due() == []
    seconds.now = 60.0
    assert budget.due() == [("alice", 7)]
    assert budget.due() == []
    assert taken(budget, "alice", 1) == 1


def test_one_party_takes_no_other_partys_place() -> None:
    budget = RefusalBudget(Seconds())
    taken(budget, "alice", 1000)
    assert taken(budget, "bob", RECORDED_PER_MINUTE) == RECORDED_PER_MINUTE
    assert budget.rest() == [("alice", 1000 - RECORDED_PER_MINUTE)]
    assert budget.rest() == []


def test_a_party_that_begins_again_waits_its_minute() -> None:
    seconds = Seconds()
    budget = RefusalBudget(seconds)
    for at, party in ((0.0, "alice"), (10.0, "bob")):
        seconds.now = at
        taken(budget, party, RECORDED_PER_MINUTE + 1)
    seconds.now = 60.0
    assert budget.due() == [("alice", 1)]
    taken(budget, "alice", RECORDED_PER_MINUTE + 2)
    seconds.now = 70.0
    assert budget.due() == [("bob", 1)]
    seconds.now = 120.0
    assert budget.due() == [("alice", 2)]


def test_a_minute_begins_with_a_partys_first_refusal() -> None:
    seconds = Seconds()
    budget = RefusalBudget(seconds)
    taken(budget, "alice", RECORDED_PER_MINUTE + 1)
    seconds.now = 30.0
    taken(budget, "bob", RECORDED_PER_MINUTE + 2)
    seconds.now = 60.0
    assert budget.due() == [("alice", 1)]
    seconds.now = 90.0
    assert budget.due() == [("bob", 2)]
