from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from tests.unit.attestation.example_claims import (
    INSTANCE,
    PPID,
    ROOT,
    ROOT_SHA256,
    SGX,
    TD_ATTRIBUTES,
    TDX,
    example_claims,
)

from cloister.attestation.claims import Claims
from cloister.attestation.policy import (
    Check,
    Policy,
    SgxExactReference,
    SgxReference,
    TdxReference,
    appraise,
    appraise_tightened,
    examine,
    policy_sha256,
)
from cloister.attestation.policy_schema import OUT_OF_DATE
from cloister.attestation.reports import (
    SGX_FLAG_EINIT_TOKEN_KEY,
    SGX_FLAG_INIT,
    SGX_FLAG_MODE64,
    SGX_FLAG_PROVISION_KEY,
    TD_FLAG_MIGRATABLE,
    TD_FLAG_SEPT_VE_DISABLE,
    SgxAttributes,
    TdAttributes,
    Tee,
)
from cloister.attestation.tcb_status import TCB_STATUSES
from cloister.errors import AppraisalError

TEES: tuple[Tee, ...] = ("sgx", "tdx")
OTHER_ROOT = f"simulated:sha256:{'6' * 64}"
ENCLAVE = SgxReference(mr_enclave=SGX.mr_enclave)
DOMAIN = TdxReference(mrtd=TDX.mrtd, rtmr0=TDX.rtmr0, rtmr1=TDX.rtmr1, rtmr2=TDX.rtmr2)
OTHERS = (
    SgxReference(mr_enclave="9" * 64),
    TdxReference(mrtd="9" * 96, rtmr0="9" * 96, rtmr1="9" * 96, rtmr2="9" * 96),
)
POLICY = Policy(root=ROOT, sgx=(OTHERS[0], ENCLAVE), tdx=(OTHERS[1], DOMAIN))


def but(**changes: Any) -> Policy:
    """The usual policy with some fields changed."""
    return msgspec.structs.replace(POLICY, **changes)


def refused(claims: Claims, policy: Policy) -> AppraisalError:
    with pytest.raises(AppraisalError) as refusal:
        appraise(claims, policy)
    return refusal.value


def reason(claims: Claims, policy: Policy, code: str) -> str:
    """Why one check passed, in a verdict."""
    return next(
        check.reason for check in appraise(claims, policy).checks if check.code == code
    )


@pytest.mark.parametrize("tee", TEES)
def test_what_the_policy_lists_is_accepted_with_reasons(tee: Tee) -> None:
    claims = example_claims(tee)
    verdict = appraise(claims, POLICY)
    assert verdict.claims == claims
    assert verdict.policy_sha256 == policy_sha256(POLICY)
    of_a_domain = ["appraisal-sept-ve-disable", "appraisal-service-td"]
    assert [check.code for check in verdict.checks] == [
        "appraisal-root",
        "appraisal-platform",
        "appraisal-tcb-status",
        "appraisal-advisories",
        "appraisal-evaluation-number",
        "appraisal-debug",
        "appraisal-attributes",
        *(of_a_domain if tee == "tdx" else []),
        "appraisal-measurement",
    ]
    assert all(check.reason for check in verdict.checks)


@pytest.mark.parametrize("tee", TEES)
@pytest.mark.parametrize(
    "name", ["hardware", OTHER_ROOT, f"preproduction:sha256:{ROOT_SHA256}"]
)
def test_another_root_is_refused(tee: Tee, name: str) -> None:
    error = refused(example_claims(tee), but(root=name, platforms="any"))
    assert error.code == "appraisal-root"
    assert error.expected == name
    assert error.got == ROOT


@pytest.mark.parametrize("kind", ["hardware", "preproduction"])
def test_a_simulated_policy_is_not_met_by_the_same_hash_of_another_kind(
    kind: str,
) -> None:
    claims = example_claims("sgx", root_kind=kind)
    assert refused(claims, POLICY).code == "appraisal-root"


def test_a_preproduction_root_is_accepted_only_by_its_hash() -> None:
    claims = example_claims("sgx", root_kind="preproduction")
    name = f"preproduction:sha256:{ROOT_SHA256}"
    appraise(claims, but(root=name, platforms=(PPID,)))
    assert claims.simulated, "nothing but production hardware is called hardware"


def test_any_platform_of_a_simulated_root_is_accepted_where_none_is_named() -> None:
    assert "any platform" in reason(example_claims("sgx"), POLICY, "appraisal-platform")


@pytest.mark.parametrize("listed", [PPID, INSTANCE])
def test_a_platform_is_known_by_its_ppid_or_its_instance(listed: str) -> None:
    policy = but(platforms=("9" * 32, listed))
    assert listed in reason(example_claims("tdx"), policy, "appraisal-platform")


@pytest.mark.parametrize("instance", [INSTANCE, None])
def test_a_platform_that_is_not_listed_is_refused(instance: str | None) -> None:
    claims = example_claims("sgx", platform_instance_id=instance)
    error = refused(claims, but(platforms=("9" * 32,)))
    assert error.code == "appraisal-platform"
    assert PPID in error.got
    assert "9" * 32 in error.expected


@pytest.mark.parametrize("status", [it for it in TCB_STATUSES if it != "UpToDate"])
def test_only_up_to_date_is_accepted_unless_the_status_is_listed(status: str) -> None:
    claims = example_claims("sgx", tcb_status=status)
    error = refused(claims, POLICY)
    assert error.code == "appraisal-tcb-status"
    assert error.expected == "UpToDate"
    assert status in error.got
    grace = 365 if status in OUT_OF_DATE else None
    appraise(claims, but(tcb_statuses=(status,), tcb_grace_days=grace))


def test_up_to_date_is_refused_where_it_is_not_listed() -> None:
    policy = but(tcb_statuses=("SWHardeningNeeded",))
    assert refused(example_claims("sgx"), policy).code == "appraisal-tcb-status"


@pytest.mark.parametrize("status", ["OutOfDate", "OutOfDateConfigurationNeeded"])
def test_an_out_of_date_platform_is_accepted_until_its_grace_ends(status: str) -> None:
    policy = but(tcb_statuses=("UpToDate", status), tcb_grace_days=30)
    claims = example_claims("sgx", tcb_status=status)
    last = claims.tcb_date + timedelta(days=30)
    appraise(dataclasses.replace(claims, verified_at=last), policy)
    late = dataclasses.replace(claims, verified_at=last + timedelta(seconds=1))
    error = refused(late, policy)
    assert error.code == "appraisal-tcb-status"
    assert "2026-07-01" in error.expected


def test_a_grace_lets_no_status_pass_that_is_not_listed() -> None:
    policy = but(tcb_statuses=("OutOfDate",), tcb_grace_days=36_525)
    claims = example_claims("sgx", tcb_status="OutOfDateConfigurationNeeded")
    assert refused(claims, policy).code == "appraisal-tcb-status"


@pytest.mark.parametrize("status", ["UpToDate", "SWHardeningNeeded"])
def test_every_advisory_must_be_listed_whatever_the_status(status: str) -> None:
    claims = example_claims(
        "sgx",
        tcb_status=status,
        advisory_ids=("INTEL-SA-00289", "INTEL-SA-00615"),
    )
    policy = but(tcb_statuses=("UpToDate", "SWHardeningNeeded"))
    assert refused(claims, policy).got == "INTEL-SA-00289, INTEL-SA-00615"
    partly = msgspec.structs.replace(policy, accepted_advisories=("INTEL-SA-00615",))
    error = refused(claims, partly)
    assert error.code == "appraisal-advisories"
    assert error.got == "INTEL-SA-00289"
    for accepted in (("INTEL-SA-00615", "INTEL-SA-00289", "INTEL-SA-00001"), "any"):
        appraise(claims, msgspec.structs.replace(policy, accepted_advisories=accepted))


def test_collateral_below_the_evaluation_number_is_refused() -> None:
    claims = example_claims("tdx")
    appraise(claims, but(min_tcb_evaluation_number=17))
    error = refused(claims, but(min_tcb_evaluation_number=18))
    assert error.code == "appraisal-evaluation-number"
    assert error.got == "17"


@pytest.mark.parametrize("tee", TEES)
def test_debug_is_refused_unless_it_is_accepted_by_name(tee: Tee) -> None:
    debug = example_claims(tee, debug=True)
    assert refused(debug, POLICY).code == "appraisal-debug"
    accepted = but(debug="accepted-insecurely")
    assert "host can read" in reason(debug, accepted, "appraisal-debug")
    appraise(example_claims(tee), accepted)


def test_a_trust_domain_must_set_sept_ve_disable_unless_it_may_not() -> None:
    claims = example_claims("tdx", attributes=TdAttributes(flags=0))
    assert refused(claims, POLICY).code == "appraisal-sept-ve-disable"
    appraise(claims, but(sept_ve_disable="any"))


@pytest.mark.parametrize("mrservicetd", [None, "0" * 96])
def test_a_trust_domain_without_service_td_is_accepted(mrservicetd: str | None) -> None:
    measured = dataclasses.replace(TDX, mrservicetd=mrservicetd)
    appraise(example_claims("tdx", measurements=measured), POLICY)


def test_a_service_td_is_refused_unless_it_is_listed() -> None:
    measured = dataclasses.replace(TDX, mrservicetd="7" * 96)
    claims = example_claims("tdx", measurements=measured)
    error = refused(claims, POLICY)
    assert error.code == "appraisal-service-td"
    assert "7" * 96 in error.got
    appraise(claims, but(mrservicetd=("7" * 96,)))
    migratable = dataclasses.replace(
        claims,
        attributes=TdAttributes(flags=TD_ATTRIBUTES.flags | TD_FLAG_MIGRATABLE),
    )
    appraise(migratable, but(mrservicetd=("7" * 96,)))
    without = example_claims("tdx")
    assert refused(without, but(mrservicetd=("7" * 96,))).code == "appraisal-service-td"


@pytest.mark.parametrize("mrservicetd", [None, "0" * 96])
def test_a_domain_that_may_be_moved_must_name_its_mover(
    mrservicetd: str | None,
) -> None:
    claims = example_claims(
        "tdx",
        measurements=dataclasses.replace(TDX, mrservicetd=mrservicetd),
        attributes=TdAttributes(flags=TD_FLAG_SEPT_VE_DISABLE | TD_FLAG_MIGRATABLE),
    )
    error = refused(claims, POLICY)
    assert error.code == "appraisal-service-td"
    assert "MIGRATABLE" in error.expected


def test_another_enclave_is_refused_with_both_measurements() -> None:
    measured = dataclasses.replace(SGX, mr_enclave="e" * 64)
    error = refused(example_claims("sgx", measurements=measured), POLICY)
    assert error.code == "appraisal-measurement"
    assert "e" * 64 in error.got
    assert SGX.mr_enclave in error.expected
    assert "cloister measure" in error.remedy


PRODUCT = SgxReference(mr_signer=SGX.mr_signer, isv_prod_id=3, min_isv_svn=7)


@pytest.mark.parametrize("change", [{}, {"isv_svn": 8}, {"mr_enclave": "e" * 64}])
def test_a_product_is_accepted_from_its_version_on(change: dict[str, Any]) -> None:
    measured = dataclasses.replace(SGX, **change)
    appraise(example_claims("sgx", measurements=measured), but(sgx=(PRODUCT,)))


@pytest.mark.parametrize(
    "change", [{"isv_svn": 6}, {"isv_prod_id": 4}, {"mr_signer": "e" * 64}]
)
def test_another_product_or_an_older_version_is_refused(change: dict[str, Any]) -> None:
    measured = dataclasses.replace(SGX, **change)
    claims = example_claims("sgx", measurements=measured)
    error = refused(claims, but(sgx=(PRODUCT,)))
    assert error.code == "appraisal-measurement"
    assert "isv_svn at least 7" in error.expected


def test_an_exact_reference_wants_the_very_version() -> None:
    exact = SgxExactReference(mr_signer=SGX.mr_signer, isv_svn=7)
    policy = but(sgx=(), sgx_exact=(exact,))
    appraise(example_claims("sgx"), policy)
    for svn in (6, 8):
        measured = dataclasses.replace(SGX, isv_svn=svn)
        claims = example_claims("sgx", measurements=measured)
        assert refused(claims, policy).code == "appraisal-measurement"


def test_values_of_two_references_do_not_add_up_to_one() -> None:
    half = TdxReference(mrtd=TDX.mrtd, rtmr0="9" * 96, rtmr1="9" * 96, rtmr2="9" * 96)
    rest = TdxReference(
        mrtd="9" * 96, rtmr0=TDX.rtmr0, rtmr1=TDX.rtmr1, rtmr2=TDX.rtmr2
    )
    claims = example_claims("tdx")
    assert refused(claims, but(tdx=(half, rest))).code == "appraisal-measurement"


@pytest.mark.parametrize("register", ["mrtd", "rtmr0", "rtmr1", "rtmr2"])
def test_a_trust_domain_that_differs_in_one_register_is_refused(register: str) -> None:
    change: dict[str, Any] = {register: "9" * 96}
    measured = dataclasses.replace(TDX, **change)
    claims = example_claims("tdx", measurements=measured)
    assert refused(claims, POLICY).code == "appraisal-measurement"


@pytest.mark.parametrize(
    "register",
    ["rtmr3", "mrconfigid", "mrowner", "mrownerconfig", "mrseam", "mrsignerseam"],
)
def test_what_a_domain_says_besides_decides_only_where_it_is_named(
    register: str,
) -> None:
    change: dict[str, Any] = {register: "9" * 96}
    measured = dataclasses.replace(TDX, **change)
    other = example_claims("tdx", measurements=measured)
    appraise(other, POLICY)
    named = msgspec.structs.replace(DOMAIN, **{register: getattr(TDX, register)})
    appraise(example_claims("tdx"), but(tdx=(named,)))
    error = refused(other, but(tdx=(named,)))
    assert error.code == "appraisal-measurement"
    assert f"{register} {'9' * 96}" in error.got


def test_cpu_features_that_differ_between_hosts_decide_nothing() -> None:
    for xfam in (0x207, 0x61BE7):
        measured = dataclasses.replace(TDX, xfam=xfam)
        appraise(example_claims("tdx", measurements=measured), POLICY)


@pytest.mark.parametrize(("tee", "gone"), [("sgx", "sgx"), ("tdx", "tdx")])
def test_a_policy_for_one_kind_refuses_the_other(tee: Tee, gone: str) -> None:
    error = refused(example_claims(tee), but(**{gone: ()}))
    assert error.expected == f"no {tee} environment at all"


def test_a_long_list_of_references_is_not_printed_whole() -> None:
    many = tuple(SgxReference(mr_enclave=f"{n:064x}") for n in range(100))
    error = refused(example_claims("sgx"), but(sgx=many))
    assert error.expected.endswith("or one of 92 more")


def test_every_failing_check_is_named_in_one_refusal() -> None:
    bad = example_claims(
        "tdx",
        debug=True,
        tcb_status="OutOfDate",
        advisory_ids=("INTEL-SA-00960",),
        attributes=TdAttributes(flags=TD_FLAG_MIGRATABLE | 1 << 40),
    )
    policy = but(
        root="hardware",
        platforms=("9" * 32,),
        min_tcb_evaluation_number=18,
        tdx=(OTHERS[1],),
    )
    error = refused(bad, policy)
    assert error.code == "appraisal-root"
    for word in (
        "root",
        "platform is not one",
        "TCB status",
        "advisories",
        "too old",
        "debug",
        "attributes that nothing",
        "exceptions",
        "moved",
        "other code",
    ):
        assert word in error.what, word
    assert "hardware" in error.expected
    assert "debug on" in error.got
    outcomes = examine(bad, policy)
    assert len(outcomes) == 10
    assert not any(isinstance(it, Check) for it in outcomes)


@pytest.mark.parametrize(
    "flags",
    [
        SGX_FLAG_INIT,  # 32-bit mode: the same bytes would be other code
        SGX_FLAG_MODE64,
        SGX_FLAG_INIT | SGX_FLAG_MODE64 | SGX_FLAG_PROVISION_KEY,
        SGX_FLAG_INIT | SGX_FLAG_MODE64 | SGX_FLAG_EINIT_TOKEN_KEY,
        SGX_FLAG_INIT | SGX_FLAG_MODE64 | 1 << 40,
    ],
)
def test_an_enclave_with_other_attributes_than_its_makers_meant_is_refused(
    flags: int,
) -> None:
    """MRENCLAVE does not cover them: whoever signs the enclave picks them."""
    claims = example_claims("sgx", attributes=SgxAttributes(flags=flags, xfrm=0xE7))
    assert refused(claims, POLICY).code == "appraisal-attributes"


def test_a_trust_domain_with_an_unknown_attribute_is_refused() -> None:
    flags = TD_ATTRIBUTES.flags | 1 << 40
    claims = example_claims("tdx", attributes=TdAttributes(flags=flags))
    assert refused(claims, POLICY).code == "appraisal-attributes"


def test_a_level_at_the_end_of_all_dates_overflows_nothing() -> None:
    policy = but(tcb_statuses=("OutOfDate",), tcb_grace_days=36_525)
    end = datetime(9999, 12, 31, tzinfo=UTC)
    appraise(example_claims("sgx", tcb_status="OutOfDate", tcb_date=end), policy)


def test_examining_shows_what_passed_and_what_did_not() -> None:
    outcomes = examine(example_claims("sgx", debug=True), POLICY)
    assert [it.code for it in outcomes if isinstance(it, AppraisalError)] == [
        "appraisal-debug"
    ]
    assert sum(isinstance(it, Check) for it in outcomes) == 7


def test_a_partys_own_policy_can_only_refuse_more() -> None:
    claims = example_claims("sgx")
    loose = but(debug="accepted-insecurely", tcb_statuses=tuple(TCB_STATUSES[:4]))
    both = appraise_tightened(claims, plan_policy=POLICY, local_policy=loose)
    assert both.plan.policy_sha256 == policy_sha256(POLICY)
    assert both.local.policy_sha256 == policy_sha256(loose)
    debug = example_claims("sgx", debug=True)
    for plan, local, whose in (
        (POLICY, loose, "by the plan's policy"),
        (loose, POLICY, "by this party's own policy"),
    ):
        with pytest.raises(AppraisalError, match=whose) as refusal:
            appraise_tightened(debug, plan_policy=plan, local_policy=local)
        assert refusal.value.code == "appraisal-debug"
    with pytest.raises(AppraisalError) as refusal:
        appraise_tightened(debug, plan_policy=POLICY, local_policy=POLICY)
    assert "plan's" in refusal.value.what
    assert "own" in refusal.value.what
