from __future__ import annotations

from tests.support.rounds_story import report
from tests.support.run_audit import participant

from cloister.federation.finals import Finals


def test_each_party_reports_once_and_all_are_kept_in_the_plans_order() -> None:
    finals = Finals()
    finals.take(participant("bob"), report(10, accuracy=5))
    finals.take(participant("bob"), report(10, accuracy=0))
    finals.take(participant("alice"), report(10, accuracy=10, recall=1))
    parties = ("alice", "bob")
    assert finals.participants(parties) == tuple(map(participant, parties))
    assert finals.metrics(parties) == ({"accuracy": 0.75}, 1)


def test_metrics_of_one_party_alone_are_withheld() -> None:
    finals = Finals()
    finals.take(participant("bob"), report(10, accuracy=5))
    assert finals.metrics(("bob",)) == ({}, 0)
