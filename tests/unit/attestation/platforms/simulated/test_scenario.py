from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from tests.unit.attestation.differential import ours, theirs
from tests.unit.attestation.scenarios import Judge

from cloister.attestation.claims import TdxMeasurements
from cloister.attestation.platforms.simulated.collateral import COLLATERAL_LIFE
from cloister.attestation.platforms.simulated.profile import (
    ENCLAVE_FLAGS,
    TD_FLAGS,
    Machine,
)
from cloister.attestation.platforms.simulated.quotes import (
    QUOTE_FORMS,
    SGX_V3,
    TD_15_V5,
    QuoteForm,
)
from cloister.attestation.reports import SGX_FLAG_DEBUG, TD_FLAG_DEBUG


@pytest.fixture(
    params=QUOTE_FORMS, ids=lambda it: f"{it.tee}-{it.body_type}-{it.version}"
)
def form(request: pytest.FixtureRequest) -> QuoteForm:
    made: QuoteForm = request.param
    return made


def test_every_form_is_genuine_and_says_that_it_is_simulated(
    judge: Judge, form: QuoteForm
) -> None:
    report_data = bytes(range(64))
    case = judge.scenario(form).build(judge.root, report_data=report_data)
    claims = judge.claims(case)
    assert (claims.quote_version, claims.tee) == (form.version, form.tee)
    assert claims.report_data == report_data
    assert claims.simulated
    assert claims.root_name == judge.root.trust_root.name
    assert claims.tcb_status == "UpToDate"
    assert not claims.debug


def test_an_independent_verifier_accepts_the_forms_that_it_knows(
    judge: Judge, form: QuoteForm
) -> None:
    if form.tee == "sgx" and form != SGX_V3:
        return
    case = judge.scenario(form).build(judge.root)
    assert theirs(judge, case, at=judge.at).agrees_with(ours(judge, case, at=judge.at))


def test_debug_is_genuine_and_said(judge: Judge, form: QuoteForm) -> None:
    machine = Machine(
        enclave_flags=ENCLAVE_FLAGS | SGX_FLAG_DEBUG, td_flags=TD_FLAGS | TD_FLAG_DEBUG
    )
    case = judge.scenario(form, machine=machine).build(judge.root)
    assert judge.claims(case).debug


def test_collateral_expires(judge: Judge, form: QuoteForm) -> None:
    case = judge.scenario(form).build(judge.root)
    late = judge.at + COLLATERAL_LIFE + timedelta(seconds=1)
    assert judge.refused(case, at=late) == ("crl-expired", 3)


def test_a_td_report_15_says_more(judge: Judge) -> None:
    machine = Machine(
        mrservicetd=bytes(range(48)), tee_tcb_svn2=bytes([9, 1, 4]) + bytes(13)
    )
    case = judge.scenario(TD_15_V5, machine=machine).build(judge.root)
    measured = judge.claims(case).measurements
    assert isinstance(measured, TdxMeasurements)
    assert measured.mrservicetd == bytes(range(48)).hex()
    assert measured.tee_tcb_svn2 == machine.tee_tcb_svn2.hex()


def test_a_platform_of_one_package_names_no_instance(judge: Judge) -> None:
    machine = Machine(platform_instance=False)
    claims = judge.claims(judge.scenario(SGX_V3, machine=machine).build(judge.root))
    assert claims.platform_instance_id is None
    assert (claims.dynamic_platform, claims.cached_keys, claims.smt_enabled) == (
        None,
        None,
        None,
    )


def test_two_builds_share_no_key(judge: Judge) -> None:
    scenario = judge.scenario(SGX_V3)
    one, other = scenario.build(judge.root), scenario.build(judge.root)
    assert judge.claims(one).ppid != judge.claims(other).ppid
    mixed = dataclasses.replace(one, collateral=other.collateral)
    assert judge.claims(mixed).tcb_status == "UpToDate"


def test_nothing_secret_is_in_a_repr(judge: Judge) -> None:
    case = judge.scenario(SGX_V3).build(judge.root)
    assert repr(case) == "SimulatedCase()"
