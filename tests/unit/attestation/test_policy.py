from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import msgspec
import pytest

from cloister.attestation.claims import Claims, SgxMeasurements, TdxMeasurements
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.policy import (
    Policy,
    SgxReference,
    TdxReference,
    appraise,
    policy_sha256,
)
from cloister.attestation.reports import Tee
from cloister.errors import AppraisalError, ConfigError

TEES: tuple[Tee, ...] = ("sgx", "tdx")
SIMULATED = f"simulated:sha256:{'5' * 64}"
ENCLAVE = SgxReference(mr_enclave="a" * 64)
DOMAIN = TdxReference(mrtd="a" * 96, rtmr0="b" * 96, rtmr1="c" * 96, rtmr2="d" * 96)


@pytest.fixture(scope="module")
def policy(root: SimulatedRoot, measurement: Measurement) -> Policy:
    return Policy(
        root=root.trust_root.name,
        sgx=(ENCLAVE, SgxReference(mr_enclave=measurement.mr_enclave.hex())),
        tdx=(
            TdxReference(
                mrtd=measurement.mrtd.hex(),
                rtmr0=measurement.rtmr0.hex(),
                rtmr1=measurement.rtmr1.hex(),
                rtmr2=measurement.rtmr2.hex(),
            ),
        ),
    )


def refused(claims: Claims, policy: Policy) -> AppraisalError:
    with pytest.raises(AppraisalError) as refusal:
        appraise(claims, policy)
    return refusal.value


@pytest.mark.parametrize("tee", TEES)
def test_what_the_policy_lists_is_accepted_with_reasons(
    claims: Mapping[Tee, Claims], policy: Policy, tee: Tee
) -> None:
    verdict = appraise(claims[tee], policy)
    assert verdict.claims == claims[tee]
    assert verdict.policy_sha256 == policy_sha256(policy)
    assert [check.code for check in verdict.checks] == [
        "appraisal-root",
        "appraisal-debug",
        "appraisal-measurement",
    ]
    assert all(check.reason for check in verdict.checks)


@pytest.mark.parametrize("tee", TEES)
@pytest.mark.parametrize("name", ["hardware", SIMULATED])
def test_another_root_is_refused(
    claims: Mapping[Tee, Claims], policy: Policy, tee: Tee, name: str
) -> None:
    error = refused(claims[tee], msgspec.structs.replace(policy, root=name))
    assert error.code == "appraisal-root"
    assert error.expected == name
    assert error.got == claims[tee].root_name


def test_simulated_evidence_never_meets_a_hardware_policy_by_its_hash_alone(
    claims: Mapping[Tee, Claims], policy: Policy
) -> None:
    hardware = dataclasses.replace(claims["sgx"], root_kind="hardware")
    assert refused(hardware, policy).code == "appraisal-root"


@pytest.mark.parametrize("tee", TEES)
def test_debug_is_refused(
    claims: Mapping[Tee, Claims], policy: Policy, tee: Tee
) -> None:
    debug = dataclasses.replace(claims[tee], debug=True)
    assert refused(debug, policy).code == "appraisal-debug"


def test_another_enclave_is_refused_with_both_measurements(
    claims: Mapping[Tee, Claims], policy: Policy
) -> None:
    measured = claims["sgx"].measurements
    assert isinstance(measured, SgxMeasurements)
    other = dataclasses.replace(
        claims["sgx"], measurements=dataclasses.replace(measured, mr_enclave="e" * 64)
    )
    error = refused(other, policy)
    assert error.code == "appraisal-measurement"
    assert "e" * 64 in error.got
    assert measured.mr_enclave in error.expected
    assert "cloister measure" in error.remedy


@pytest.mark.parametrize("register", ["mrtd", "rtmr0", "rtmr1", "rtmr2"])
def test_a_trust_domain_that_differs_in_one_register_is_refused(
    claims: Mapping[Tee, Claims], policy: Policy, register: str
) -> None:
    measured = claims["tdx"].measurements
    assert isinstance(measured, TdxMeasurements)
    fields = dataclasses.asdict(measured)
    changed = TdxMeasurements(**{**fields, register: "e" * 96})
    other = dataclasses.replace(claims["tdx"], measurements=changed)
    assert refused(other, policy).code == "appraisal-measurement"


def test_the_register_that_the_workload_extends_itself_decides_nothing(
    claims: Mapping[Tee, Claims], policy: Policy
) -> None:
    measured = claims["tdx"].measurements
    assert isinstance(measured, TdxMeasurements)
    grown = dataclasses.replace(measured, rtmr3="e" * 96)
    appraise(dataclasses.replace(claims["tdx"], measurements=grown), policy)


def test_a_policy_for_one_kind_refuses_the_other(
    claims: Mapping[Tee, Claims], policy: Policy
) -> None:
    for tee, only in (("sgx", {"sgx": ()}), ("tdx", {"tdx": ()})):
        other = msgspec.structs.replace(policy, **only)
        error = refused(claims["sgx" if tee == "sgx" else "tdx"], other)
        assert error.expected == f"no {tee} environment at all"


def test_every_failing_check_is_named_in_one_refusal(
    claims: Mapping[Tee, Claims],
) -> None:
    bad = dataclasses.replace(claims["sgx"], debug=True)
    error = refused(bad, Policy(root="hardware", sgx=(ENCLAVE,)))
    assert error.code == "appraisal-root"
    for word in ("root", "debug", "other code"):
        assert word in error.what
    assert "hardware" in error.expected
    assert "debug on" in error.got


@pytest.mark.parametrize(
    "root",
    [
        "",
        "Hardware",
        "simulated",
        "any",
        "simulated:sha256:",
        f"simulated:sha256:{'5' * 63}",
        f"simulated:sha256:{'F' * 64}",
        f"hardware:sha256:{'5' * 64}",
        f"{SIMULATED}\n",
        "hardware\n",
    ],
)
def test_a_root_that_is_not_named_exactly_is_refused(root: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Policy(root=root, sgx=(ENCLAVE,))
    assert refusal.value.code == "policy-root"


def test_a_policy_that_accepts_nothing_is_refused() -> None:
    with pytest.raises(ConfigError) as refusal:
        Policy(root="hardware")
    assert refusal.value.code == "policy-empty"


@pytest.mark.parametrize("text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "*"])
def test_a_measurement_that_is_not_whole_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        SgxReference(mr_enclave=text)
    assert refusal.value.code == "policy-measurement"


@pytest.mark.parametrize("register", ["mrtd", "rtmr0", "rtmr1", "rtmr2"])
@pytest.mark.parametrize("text", ["", "a" * 64, "A" * 96, "a" * 95 + "\n"])
def test_a_register_that_is_not_whole_is_refused(register: str, text: str) -> None:
    with pytest.raises(ConfigError):
        msgspec.structs.replace(DOMAIN, **{register: text})


def test_a_policy_is_read_as_the_plan_writes_it() -> None:
    plan = f'root = "{SIMULATED}"\nsgx = [{{ mr_enclave = "{ENCLAVE.mr_enclave}" }}]'
    assert msgspec.toml.decode(plan, type=Policy) == Policy(
        root=SIMULATED, sgx=(ENCLAVE,)
    )


@pytest.mark.parametrize(
    "line", ["debug = true", 'sgx = [{ mr_enclave = "x" }]', "sgx = [{}]", "sgx = 1"]
)
def test_a_policy_with_anything_else_in_it_is_refused(line: str) -> None:
    with pytest.raises((ConfigError, msgspec.ValidationError)):
        msgspec.toml.decode(f'root = "hardware"\n{line}', type=Policy)


def test_the_hash_covers_every_field_and_no_order() -> None:
    other = SgxReference(mr_enclave="b" * 64)
    first = Policy(root="hardware", sgx=(ENCLAVE, other), tdx=(DOMAIN,))
    assert policy_sha256(first) == policy_sha256(
        msgspec.structs.replace(first, sgx=(other, ENCLAVE))
    )
    changed = [
        msgspec.structs.replace(first, root=SIMULATED),
        msgspec.structs.replace(first, sgx=(ENCLAVE,)),
        msgspec.structs.replace(first, sgx=()),
        msgspec.structs.replace(first, tdx=()),
        *(
            msgspec.structs.replace(
                first, tdx=(msgspec.structs.replace(DOMAIN, **{name: "0" * 96}),)
            )
            for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")
        ),
    ]
    hashes = {policy_sha256(policy) for policy in (first, *changed)}
    assert len(hashes) == len(changed) + 1
    assert all(len(digest) == 64 for digest in hashes)
