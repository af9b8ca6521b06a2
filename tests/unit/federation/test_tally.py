from __future__ import annotations

from tests.support.rounds_story import header, report
from tests.support.run_audit import participant

from cloister.federation.messages import EvaluationReport
from cloister.federation.tally import Tally, means_of


def tally(**evaluations: EvaluationReport | None) -> Tally:
    made = Tally()
    for party, evaluation in evaluations.items():
        made.take(participant(party), header(1, evaluation))
    return made


def test_the_loss_is_over_all_examples_and_one_partys_is_withheld() -> None:
    made = tally(bob=None, alice=None)
    assert made.loss(("alice", "bob")) == 0.5
    assert made.loss(("alice",)) is None


def test_participants_stand_in_the_order_asked_for() -> None:
    made = tally(bob=None, alice=None)
    assert made.participants(("alice", "bob")) == (
        participant("alice"),
        participant("bob"),
    )


def test_metrics_are_over_who_was_asked_and_one_partys_are_withheld() -> None:
    both = tally(alice=report(10, accuracy=5, mine=1), bob=report(30, accuracy=25))
    assert both.metrics(("alice", "bob")) == ({"accuracy": 0.75}, 1)
    assert both.metrics(("alice",)) == (None, 0)
    assert tally(alice=None, bob=None).metrics(("alice", "bob")) == (None, 0)


def test_means_of_fewer_than_two_are_none() -> None:
    assert means_of([]) is None
    assert means_of([report(1, a=1)]) is None
    assert means_of([report(1, a=1), report(1, a=0)]) == {"a": 0.5}
