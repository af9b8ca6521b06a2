from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.federation.messages import (
    EvaluationReport,
    ModelHeader,
    UpdateHeader,
)
from cloister.federation.rounds.checks import (
    MAX_SUM,
    check_evaluation,
    check_layout,
    check_update_header,
)

LAYOUT, OTHER = "a" * 64, "b" * 64
NO_NUMBERS = (math.nan, math.inf, -math.inf, 2 * MAX_SUM, -2 * MAX_SUM)
GOOD = UpdateHeader(
    round=3, layout=LAYOUT, examples=16, loss_sum=1.5, countersignature=b"signed"
)


def report(**sums: float) -> EvaluationReport:
    return EvaluationReport(examples=10, sums=sums)


def model(*, evaluate: bool = False, at_once: bool = False) -> ModelHeader:
    return ModelHeader(
        round=3,
        layout=LAYOUT,
        evaluate=evaluate,
        final=False,
        audit_head=bytes(32),
        at_once=at_once,
    )


def refusal(header: UpdateHeader, *, evaluate: bool = False) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        check_update_header("bob", header, model=model(evaluate=evaluate), examples=16)
    assert "'bob'" in caught.value.what
    return caught.value


def test_an_update_as_the_plan_wants_it_passes() -> None:
    check_update_header("bob", GOOD, model=model(evaluate=False), examples=16)
    evaluated = msgspec.structs.replace(GOOD, evaluation=report(accuracy=1))
    check_update_header("bob", evaluated, model=model(evaluate=True), examples=16)


def test_another_layout_is_refused() -> None:
    error = refusal(msgspec.structs.replace(GOOD, layout=OTHER))
    assert error.code == "layout-differs"
    with pytest.raises(ProtocolError) as caught:
        check_layout("bob", expected=LAYOUT, got=OTHER)
    assert caught.value.code == "layout-differs"
    assert (caught.value.expected, caught.value.got) == (
        f"layout {LAYOUT}",
        f"layout {OTHER}",
    )


@pytest.mark.parametrize("examples", [1, 15, 17, 2**40])
def test_another_weight_is_refused(examples: int) -> None:
    error = refusal(msgspec.structs.replace(GOOD, examples=examples))
    assert error.code == "update-weight"
    assert error.expected == "16 examples"


@pytest.mark.parametrize("loss", NO_NUMBERS)
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    error = refusal(msgspec.structs.replace(GOOD, loss_sum=loss))
    assert error.code == "update-not-finite"


def test_an_evaluation_comes_exactly_when_it_was_asked_for() -> None:
    unasked = msgspec.structs.replace(GOOD, evaluation=report(accuracy=1))
    assert refusal(unasked).code == "update-evaluation"
    assert refusal(GOOD, evaluate=True).code == "update-evaluation"


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_an_evaluation_that_is_no_number_is_refused(value: float) -> None:
    bad = report(accuracy=1, loss=value)
    header = msgspec.structs.replace(GOOD, evaluation=bad)
    assert refusal(header, evaluate=True).code == "evaluation-not-finite"
    with pytest.raises(ProtocolError) as caught:
        check_evaluation("bob", bad)
    assert caught.value.code == "evaluation-not-finite"


def test_the_largest_sums_that_count_pass() -> None:
    header = msgspec.structs.replace(
        GOOD, loss_sum=MAX_SUM, evaluation=report(loss=-MAX_SUM)
    )
    check_update_header("bob", header, model=model(evaluate=True), examples=16)


def test_a_chunk_comes_with_the_header_only_where_all_send_at_once() -> None:
    early = msgspec.structs.replace(GOOD, first_chunk=b"first")
    assert refusal(early).code == "update-early"
    check_update_header("bob", early, model=model(at_once=True), examples=16)


@given(
    layout=st.sampled_from((LAYOUT, OTHER)),
    examples=st.sampled_from((16, 123_457)),
    loss=st.floats(),
    sums=st.none() | st.dictionaries(st.text(max_size=8), st.floats(), max_size=3),
    evaluate=st.booleans(),
)
def test_a_header_passes_or_is_refused_without_a_value_of_the_party(
    *,
    layout: str,
    examples: int,
    loss: float,
    sums: dict[str, float] | None,
    evaluate: bool,
) -> None:
    header = UpdateHeader(
        round=1,
        layout=layout,
        examples=examples,
        loss_sum=loss,
        countersignature=b"",
        evaluation=None if sums is None else EvaluationReport(examples=7, sums=sums),
    )
    good = (
        layout == LAYOUT
        and examples == 16
        and abs(loss) <= MAX_SUM
        and (sums is not None) == evaluate
        and all(abs(value) <= MAX_SUM for value in (sums or {}).values())
    )
    if good:
        check_update_header("bob", header, model=model(evaluate=evaluate), examples=16)
        return
    error = refusal(header, evaluate=evaluate)
    assert "123457" not in str(error)
    assert error.got in {
        f"layout {OTHER}",
        "another count",
        "another",
        "another value",
        "one",
        "none",
    }
