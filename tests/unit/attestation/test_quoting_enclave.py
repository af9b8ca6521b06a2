"""Step 8, end to end: is it the quoting enclave that Intel describes?"""

from __future__ import annotations

import pytest
from tests.unit.attestation.scenarios import Judge

from cloister.attestation.platforms.simulated.collateral import (
    SimulatedCollateral,
    enclave_level,
)
from cloister.attestation.platforms.simulated.profile import QE_FLAGS, Machine
from cloister.attestation.platforms.simulated.quotes import (
    SGX_V3,
    SGX_V4,
    TD_10_V4,
    TD_15_V5,
    QuoteForm,
)
from cloister.attestation.reports import SGX_FLAG_DEBUG, SGX_FLAG_MODE64
from cloister.attestation.tcb_status import EnclaveStatus, TcbStatus
from cloister.errors import VerificationError

FORMS = (SGX_V3, SGX_V4, TD_10_V4, TD_15_V5)
Refusal = tuple[str, int | None]


@pytest.fixture(params=FORMS, ids=["sgx v3", "sgx v4", "tdx v4", "tdx v5"])
def form(request: pytest.FixtureRequest) -> QuoteForm:
    made: QuoteForm = request.param
    return made


def judged(
    judge: Judge, form: QuoteForm, machine: Machine, **identity: object
) -> TcbStatus | Refusal:
    content = SimulatedCollateral(
        tee=form.tee, at=judge.at, machine=machine, qe_identity_extra=identity
    )
    made = judge.scenario(form, machine=machine, collateral=content).build(judge.root)
    try:
        return judge.claims(made).tcb_status
    except VerificationError as error:
        return error.code, error.step


@pytest.mark.parametrize(
    ("machine", "code"),
    [
        (Machine(qe_signer=bytes(32)), "qe-signer"),
        (Machine(qe_prod_id=3), "qe-product"),
        (Machine(qe_misc_select=1), "qe-misc-select"),
        (Machine(qe_flags=QE_FLAGS | SGX_FLAG_DEBUG), "qe-attributes"),
        (Machine(qe_flags=QE_FLAGS & ~1), "qe-attributes"),
        (Machine(qe_flags=QE_FLAGS | 1 << 63), "qe-attributes"),
    ],
)
def test_another_enclave_is_refused(
    judge: Judge, form: QuoteForm, machine: Machine, code: str
) -> None:
    assert judged(judge, form, machine) == (code, 8)


def test_what_the_masks_leave_open_may_differ(judge: Judge, form: QuoteForm) -> None:
    other_mode = Machine(qe_flags=QE_FLAGS & ~SGX_FLAG_MODE64)
    assert judged(judge, form, other_mode) == "UpToDate"
    misc = Machine(qe_misc_select=0x0100)
    assert judged(judge, form, misc, miscselectMask="FF00FFFF") == "UpToDate"
    # The first byte of the text is the lowest of the number.
    assert judged(judge, form, misc, miscselectMask="FFFF00FF") == ("qe-misc-select", 8)


def test_what_is_expected_outside_a_mask_is_never_there(
    judge: Judge, form: QuoteForm
) -> None:
    machine = Machine()
    attributes = "15" + "00" * 15
    assert judged(judge, form, machine, attributes=attributes) == ("qe-attributes", 8)
    assert judged(judge, form, machine, miscselect="01000000") == ("qe-misc-select", 8)
    open_misc = {"miscselect": "01000000", "miscselectMask": "FEFFFFFF"}
    assert judged(judge, form, machine, **open_misc) == ("qe-misc-select", 8)


def test_a_debug_enclave_is_refused_even_if_its_identity_leaves_that_open(
    judge: Judge, form: QuoteForm
) -> None:
    machine = Machine(qe_flags=QE_FLAGS | SGX_FLAG_DEBUG)
    mask = {"attributesMask": "F9FFFFFFFFFFFFFF" + "00" * 8}
    assert judged(judge, form, machine, **mask) == ("qe-debug", 8)


def test_the_identity_of_the_other_tees_enclave_is_refused(
    judge: Judge, form: QuoteForm
) -> None:
    other = "TD_QE" if form.tee == "sgx" else "QE"
    assert judged(judge, form, Machine(), id=other) == ("qe-identity-id", 8)


@pytest.mark.parametrize(
    ("svn", "expected"),
    [
        (9, "UpToDate"),
        (8, "UpToDate"),
        (7, "OutOfDate"),
        (6, "OutOfDate"),
        (5, ("tcb-revoked", 10)),
        (1, ("tcb-revoked", 10)),
        (0, ("tcb-not-supported", 10)),
    ],
)
def test_its_level_counts(
    judge: Judge, form: QuoteForm, svn: int, expected: TcbStatus | Refusal
) -> None:
    levels: tuple[tuple[int, EnclaveStatus], ...] = (
        (8, "UpToDate"),
        (6, "OutOfDate"),
        (1, "Revoked"),
    )
    machine = Machine(qe_svn=svn)
    content = SimulatedCollateral(
        tee=form.tee,
        at=judge.at,
        machine=machine,
        qe_levels=tuple(
            enclave_level(least, date=judge.at, status=status)
            for least, status in levels
        ),
    )
    made = judge.scenario(form, machine=machine, collateral=content).build(judge.root)
    if isinstance(expected, str):
        assert judge.claims(made).tcb_status == expected
    else:
        assert judge.refused(made) == expected


def test_its_levels_count_in_the_documents_order(judge: Judge, form: QuoteForm) -> None:
    """As in Intel's library: the first level that is reached, not the highest."""
    machine = Machine(qe_svn=9)
    content = SimulatedCollateral(
        tee=form.tee,
        at=judge.at,
        machine=machine,
        qe_levels=(
            enclave_level(1, date=judge.at, status="OutOfDate"),
            enclave_level(8, date=judge.at),
        ),
    )
    made = judge.scenario(form, machine=machine, collateral=content).build(judge.root)
    assert judge.claims(made).tcb_status == "OutOfDate"
