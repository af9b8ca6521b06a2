from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.run_audit import participant

from cloister.errors import ProtocolError
from cloister.federation.layout import Layout, ModelBuffer, layout_of
from cloister.federation.messages import EvaluationReport, UpdateHeader
from cloister.federation.rounds import (
    MAX_SUM,
    Round,
    RoundRules,
    count_left_out,
    mean_metrics,
)

PARTIES = ("alice", "bob", "carol", "dave")
LAYOUT: Layout = layout_of({"w": np.zeros(5)}, {"mean": np.zeros(3)})
RULES = RoundRules(parties=PARTIES, layout=LAYOUT, examples=16)
NAN, INFINITY = math.nan, math.inf


def header(
    *,
    number: int = 3,
    layout: str = LAYOUT.digest(),
    examples: int = 16,
    loss_sum: float = 1.0,
    evaluation: EvaluationReport | None = None,
) -> UpdateHeader:
    return UpdateHeader(
        round=number,
        layout=layout,
        examples=examples,
        loss_sum=loss_sum,
        countersignature=b"signed",
        evaluation=evaluation,
    )


def update(seed: int = 0) -> ModelBuffer:
    generator = np.random.default_rng(seed)
    made = ModelBuffer(LAYOUT)
    made.parameters[:] = generator.normal(0, 1e3, LAYOUT.parameter_count)
    made.statistics[:] = generator.normal(0, 1e3, LAYOUT.statistic_count)
    return made


def report(examples: int = 10, **sums: float) -> EvaluationReport:
    return EvaluationReport(examples=examples, sums=sums)


def new_round(*, evaluate: bool = False) -> Round:
    return Round(3, RULES, evaluate=evaluate)


def refusal(
    current: Round, party: str, head: UpdateHeader, body: ModelBuffer | None = None
) -> ProtocolError:
    """Returns why an update is refused; the round must be as it was before."""
    missing = current.missing
    with pytest.raises(ProtocolError) as caught:
        current.count(participant(party), head, body or update())
    assert current.missing == missing
    assert repr(party) in caught.value.what
    return caught.value


@given(st.integers(0, 2**32), st.permutations(PARTIES))
def test_the_result_does_not_depend_on_the_order_of_arrival(
    seed: int, order: list[str]
) -> None:
    results = []
    for arrival in (PARTIES, order):
        current = new_round()
        for party in arrival:
            number = PARTIES.index(party)
            loss = float(np.random.default_rng([seed, number]).normal())
            current.count(
                participant(party), header(loss_sum=loss), update(seed + number)
            )
        done = current.aggregate()
        results.append(
            (done.gradient.tobytes(), done.statistics.tobytes(), done.loss.hex())
        )
    assert results[0] == results[1]


def test_the_aggregate_is_the_mean() -> None:
    current = new_round()
    bodies = [update(seed) for seed in range(len(PARTIES))]
    for party, body in zip(PARTIES, bodies, strict=True):
        current.count(participant(party), header(loss_sum=32.0), body)
    done = current.aggregate()
    np.testing.assert_allclose(
        done.gradient, np.mean([b.parameters for b in bodies], axis=0), rtol=1e-6
    )
    np.testing.assert_allclose(
        done.statistics, np.mean([b.statistics for b in bodies], axis=0), rtol=1e-14
    )
    assert done.loss == 2.0
    assert done.metrics is None


def test_a_round_that_is_not_whole_yields_nothing() -> None:
    current = new_round()
    for party in PARTIES[:-1]:
        current.count(participant(party), header(), update())
        with pytest.raises(RuntimeError):
            current.aggregate()
    assert current.missing == ("dave",)


def test_participants_are_kept_in_the_plans_order_as_they_were_counted() -> None:
    current = new_round()
    for party in ("dave", "alice"):
        current.count(participant(party), header(), update())
    refusal(current, "alice", header())
    assert current.participants == (participant("alice"), participant("dave"))


def test_missing_parties_are_named_in_the_plans_order() -> None:
    current = new_round()
    for party in ("carol", "alice"):
        current.count(participant(party), header(), update())
    assert current.missing == ("bob", "dave")


def test_a_repeated_update_is_refused() -> None:
    current = new_round()
    current.count(participant("alice"), header(), update(1))
    assert refusal(current, "alice", header(), update(2)).code == "update-repeated"
    for party in PARTIES[1:]:
        current.count(participant(party), header(), update(1))
    # The first one counted, once.
    np.testing.assert_array_equal(
        current.aggregate().gradient, _mean_of_four(update(1).parameters)
    )


def _mean_of_four(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> object:
    quarter = values * np.float32(0.25)
    return quarter + quarter + quarter + quarter


@pytest.mark.parametrize("number", [2, 4, 1, 2**31])
def test_an_update_of_another_round_is_refused(number: int) -> None:
    error = refusal(new_round(), "bob", header(number=number))
    assert error.code == "update-round"
    assert error.expected == "round 3"


def test_an_update_of_another_layout_is_refused() -> None:
    error = refusal(new_round(), "bob", header(layout="0" * 64))
    assert error.code == "layout-differs"


@pytest.mark.parametrize("examples", [1, 15, 17, 2**40])
def test_an_update_of_another_weight_is_refused(examples: int) -> None:
    error = refusal(new_round(), "bob", header(examples=examples))
    assert error.code == "update-weight"


@pytest.mark.parametrize("loss", [NAN, INFINITY, -INFINITY, 2 * MAX_SUM])
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    error = refusal(new_round(), "bob", header(loss_sum=loss))
    assert error.code == "update-not-finite"


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("at", [0, 4, 7])
def test_a_value_that_is_no_number_is_refused(value: float, at: int) -> None:
    body = update()
    if at < LAYOUT.parameter_count:
        body.parameters[at] = value
    else:
        body.statistics[at - LAYOUT.parameter_count] = value
    assert refusal(new_round(), "bob", header(), body).code == "update-not-finite"


def test_an_evaluation_comes_exactly_when_it_was_asked_for() -> None:
    unasked = header(evaluation=report(accuracy=1))
    assert refusal(new_round(), "bob", unasked).code == "update-evaluation"
    evaluating = new_round(evaluate=True)
    assert refusal(evaluating, "bob", header()).code == "update-evaluation"


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY, 1e301])
def test_an_evaluation_that_is_no_number_is_refused(value: float) -> None:
    current = new_round(evaluate=True)
    bad = header(evaluation=report(accuracy=1, loss=value))
    assert refusal(current, "bob", bad).code == "evaluation-not-finite"


def test_only_metrics_that_every_party_reports_are_published() -> None:
    current = new_round(evaluate=True)
    first = report(accuracy=1, of_the_first=7)
    current.count(participant("alice"), header(evaluation=first), update())
    current.count(
        participant("bob"), header(evaluation=report(accuracy=1, precision=1)), update()
    )
    for party in PARTIES[2:]:
        current.count(
            participant(party), header(evaluation=report(accuracy=1)), update()
        )
    done = current.aggregate()
    assert done.metrics == {"accuracy": 0.1}
    assert done.metrics_left_out == 2


def test_a_header_is_refused_before_its_chunks_come() -> None:
    current = new_round()
    with pytest.raises(ProtocolError):
        current.check_header("bob", header(number=1))
    current.check_header("bob", header())
    assert current.missing == PARTIES


def test_metrics_are_means_over_all_held_out_examples() -> None:
    metrics = mean_metrics(
        [report(10, accuracy=5, loss=1), report(30, accuracy=30, loss=2)]
    )
    assert metrics == {"accuracy": 35 / 40, "loss": 3 / 40}


def test_metrics_do_not_depend_on_the_order_of_reports() -> None:
    reports = [report(7, loss=0.1), report(11, loss=1e16), report(13, loss=-1e16)]
    results = {
        mean_metrics(list(order))["loss"].hex()
        for order in itertools.permutations(reports)
    }
    assert len(results) == 1


def test_the_largest_sums_that_count_do_not_overflow() -> None:
    assert math.isfinite(mean_metrics(100 * [report(1, loss=MAX_SUM)])["loss"])


def test_metrics_of_different_tasks_have_no_mean() -> None:
    assert mean_metrics([report(accuracy=1), report(loss=1)]) == {}
    assert count_left_out([report(accuracy=1), report(loss=1)]) == 2
    assert count_left_out([report(accuracy=1), report(accuracy=2)]) == 0
    assert count_left_out([]) == 0
