from __future__ import annotations

import pytest
from tests.support.run_audit import participant

from cloister.federation.finals import Finals
from cloister.federation.messages import EvaluationReport


def report(**sums: float) -> EvaluationReport:
    return EvaluationReport(examples=10, sums=sums)


def test_each_party_reports_once_and_all_are_kept_in_the_plans_order() -> None:
    finals = Finals(("alice", "bob"))
    finals.take(participant("bob"), report(accuracy=5))
    assert list(finals.missing) == ["alice"]
    finals.take(participant("bob"), report(accuracy=0))
    finals.take(participant("alice"), report(accuracy=10, recall=1))
    assert list(finals.missing) == []
    assert finals.participants == (participant("alice"), participant("bob"))
    assert finals.metrics() == ({"accuracy": 0.75}, 1)


def test_there_are_no_metrics_of_some() -> None:
    finals = Finals(("alice", "bob"))
    finals.take(participant("bob"), report(accuracy=5))
    with pytest.raises(RuntimeError):
        finals.metrics()
