from __future__ import annotations

import itertools
import math

from cloister.federation.messages import EvaluationReport
from cloister.federation.rounds.checks import MAX_SUM
from cloister.federation.rounds.reports import (
    LEAST_REPORTERS,
    count_left_out,
    mean_metrics,
)


def report(examples: int = 10, **sums: float) -> EvaluationReport:
    return EvaluationReport(examples=examples, sums=sums)


def test_metrics_are_means_over_all_held_out_examples() -> None:
    metrics = mean_metrics(
        [report(10, accuracy=5, loss=1), report(30, accuracy=30, loss=2)]
    )
    assert metrics == {"accuracy": 35 / 40, "loss": 3 / 40}


def test_metrics_do_not_depend_on_the_order_of_reports() -> None:
    reports = [report(7, loss=0.1), report(11, loss=1e16), report(13, loss=-1e16)]
    results = {
        mean_metrics(order)["loss"].hex() for order in itertools.permutations(reports)
    }
    assert len(results) == 1


def test_the_largest_sums_that_count_do_not_overflow() -> None:
    assert math.isfinite(mean_metrics(1000 * [report(1, loss=MAX_SUM)])["loss"])


def test_only_metrics_that_every_party_reports_have_a_mean() -> None:
    reports = [
        report(accuracy=1, of_the_first=7),
        report(accuracy=1, precision=1),
        report(accuracy=1),
    ]
    assert mean_metrics(reports) == {"accuracy": 0.1}
    assert count_left_out(reports) == 2


def test_metrics_of_different_tasks_have_no_mean() -> None:
    assert mean_metrics([report(accuracy=1), report(loss=1)]) == {}
    assert count_left_out([report(accuracy=1), report(loss=1)]) == 2
    assert count_left_out([report(accuracy=1), report(accuracy=2)]) == 0
    assert count_left_out([]) == 0


def test_a_mean_over_one_party_is_not_for_publishing() -> None:
    assert LEAST_REPORTERS == 2
