"""What a party knows of a run, against what a server says."""

from __future__ import annotations

import msgspec
import pytest
from tests.support.federation_in_memory import Federation
from tests.support.refusals import code_of

from cloister.errors import CloisterError, ConfigError, VerificationError
from cloister.federation.marks import check_onward, check_state
from cloister.federation.messages import ModelHeader
from cloister.plan.plan import Plan
from cloister.plan.sections import Predecessor
from cloister.ratls.mark import Mark
from cloister.storage.mirror.subject import Kept

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


def kept(number: int, *, state: bytes = STATE) -> Kept:
    return Kept(round=number, counters={}, digest=state, slot=0)


def amended(federation: Federation, number: int) -> Plan:
    digest = f"sha256:{STATE.hex()}"
    before = Predecessor(plan=digest, state=digest, round=number)
    return msgspec.structs.replace(federation.plan, predecessor=before)


def test_a_run_that_nobody_knows_of_begins_without_a_state(
    federation: Federation,
) -> None:
    assert check_state(federation.plan, None, None, taken_over=True) is None


@pytest.mark.parametrize(
    ("state", "known"),
    [
        (kept(0), None),
        (kept(0), mark(0)),
        (kept(3), mark(3)),
        (kept(4, state=OTHER), mark(3)),
    ],
)
def test_a_server_goes_on_from_a_state_that_is_as_new_as_its_party_knows(
    federation: Federation, state: Kept, known: Mark | None
) -> None:
    assert check_state(federation.plan, state, known, taken_over=False) is state
    # Under an amended plan that has a state of its own, the plan before counts no more.
    plan = amended(federation, 0)
    assert check_state(plan, state, known, taken_over=False) is state


@pytest.mark.parametrize(
    ("number", "state", "known", "error", "code"),
    [
        (None, None, mark(0), ConfigError, "state-missing"),
        (None, None, mark(1), ConfigError, "state-missing"),
        (3, None, None, ConfigError, "state-missing"),
        (0, None, None, ConfigError, "state-missing"),
        (3, kept(3, state=OTHER), None, ConfigError, "state-differs"),
        (3, kept(4), None, ConfigError, "state-differs"),
        (3, kept(2), mark(3), ConfigError, "state-differs"),
        (None, kept(2), mark(3), VerificationError, "state-rolled-back"),
        (None, kept(3, state=OTHER), mark(3), VerificationError, "state-forked"),
        (3, kept(3), mark(4), VerificationError, "state-rolled-back"),
    ],
)
def test_a_server_with_another_state_than_is_known_does_not_begin(
    federation: Federation,
    number: int | None,
    state: Kept | None,
    known: Mark | None,
    error: type[CloisterError],
    code: str,
) -> None:
    plan = federation.plan if number is None else amended(federation, number)
    with pytest.raises(error) as caught:
        check_state(plan, state, known, taken_over=True)
    assert caught.value.code == code
    assert STATE.hex() in caught.value.expected
    if code != "state-differs":
        assert "cloister custodian rewind" in caught.value.remedy


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
