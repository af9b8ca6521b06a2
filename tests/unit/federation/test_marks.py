"""What a party knows of a run, against what a server says."""

from __future__ import annotations

import msgspec
import pytest
from tests.support.federation_in_memory import Federation
from tests.support.refusals import code_of

from cloister.errors import ConfigError, VerificationError
from cloister.federation.marks import check_fresh_start, check_onward, check_start
from cloister.federation.messages import ModelHeader
from cloister.plan.plan import Plan
from cloister.plan.sections import Predecessor
from cloister.ratls.mark import Mark

STATE, OTHER = b"\1" * 32, b"\2" * 32


def mark(number: int, *, state: bytes = STATE, epoch: int = 1) -> Mark:
    return Mark(round=number, state=state, server_epoch=epoch, server_key=bytes(32))


def header(completed: int, *, state: bytes | None = None) -> ModelHeader:
    return ModelHeader(
        round=completed + 1,
        layout=64 * "0",
        evaluate=False,
        final=False,
        audit_head=bytes(32),
        state=state,
    )


@pytest.mark.parametrize("known", [None, mark(0)])
def test_a_run_that_completed_no_round_may_begin(
    federation: Federation, known: Mark | None
) -> None:
    assert check_fresh_start(federation.plan, known) is federation.plan


def test_a_run_that_went_on_may_not_begin_again(federation: Federation) -> None:
    with pytest.raises(VerificationError) as caught:
        check_fresh_start(federation.plan, mark(1))
    error = caught.value
    assert error.code == "state-rolled-back"
    assert "round 1" in error.expected
    assert STATE.hex() in error.expected
    assert "cloister custodian rewind" in error.remedy


def amended(federation: Federation, number: int) -> Plan:
    digest = f"sha256:{STATE.hex()}"
    before = Predecessor(plan=digest, state=digest, round=number)
    return msgspec.structs.replace(federation.plan, predecessor=before)


def test_a_plan_amended_before_the_first_round_begins_with_the_very_state(
    federation: Federation,
) -> None:
    plan = amended(federation, 0)
    assert check_fresh_start(plan, mark(0)) is plan
    assert check_start(plan, STATE) == check_start(federation.plan, STATE) == STATE
    with pytest.raises(ConfigError) as caught:
        check_start(plan, OTHER)
    assert caught.value.code == "state-differs"
    assert STATE.hex() in caught.value.expected
    assert OTHER.hex() in caught.value.got


def test_a_plan_that_goes_on_from_a_state_cannot_begin_without_it(
    federation: Federation,
) -> None:
    plan = amended(federation, 3)
    with pytest.raises(ConfigError) as caught:
        check_fresh_start(plan, None)
    assert caught.value.code == "state-missing"
    assert STATE.hex() in caught.value.expected


@pytest.mark.parametrize(
    ("first", "known", "completed"),
    [
        (header(0), None, 0),
        (header(7), None, 0),
        (header(7), mark(6), 7),
        (header(7), mark(6), 3),
        (header(6, state=STATE), mark(6), 6),
        (header(7, state=OTHER), mark(6), 6),
    ],
)
def test_a_server_that_is_as_far_as_the_party_knows_is_trained_for(
    first: ModelHeader, known: Mark | None, completed: int
) -> None:
    assert check_onward(first, known, completed=completed) == first.round - 1


@pytest.mark.parametrize(
    ("first", "known", "completed", "code"),
    [
        (header(0), mark(1), 0, "state-rolled-back"),
        (header(5, state=STATE), mark(6), 0, "state-rolled-back"),
        (header(5), mark(4), 6, "state-rolled-back"),
        (header(5), None, 6, "state-rolled-back"),
        (header(6, state=OTHER), mark(6), 6, "state-forked"),
        (header(0, state=OTHER), mark(0), 0, "state-forked"),
        # Silence is no way round the comparison.
        (header(6), mark(6), 6, "state-forked"),
    ],
)
def test_a_server_that_is_behind_or_beside_what_the_party_knows_is_refused(
    first: ModelHeader, known: Mark | None, completed: int, code: str
) -> None:
    assert code_of(lambda: check_onward(first, known, completed=completed)) == code
