from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.attestation.example_policies import (
    DOMAIN,
    ENCLAVE,
    EXACT,
    FULL,
    PRODUCT,
    SIMULATED,
)

from cloister.attestation.policy_schema import (
    NO_SERVICE_TD,
    Policy,
    policy_sha256,
)
from cloister.errors import ConfigError

# Another value for every field: a field without an entry here fails the test below.
OTHER_VALUES: dict[str, Any] = {
    "root": f"simulated:sha256:{'6' * 64}",
    "sgx": (ENCLAVE,),
    "sgx_exact": (),
    "tdx": (msgspec.structs.replace(DOMAIN, rtmr3=None),),
    "tcb_statuses": ("OutOfDate",),
    "accepted_advisories": "any",
    "tcb_grace_days": 31,
    "min_tcb_evaluation_number": 18,
    "debug": "refused",
    "sept_ve_disable": "required",
    "mrservicetd": (NO_SERVICE_TD,),
    "platforms": "any",
    "legacy_certificates": "refused",
}


def refused(**fields: Any) -> str:
    with pytest.raises(ConfigError) as refusal:
        Policy(**{"root": SIMULATED, "sgx": (ENCLAVE,), **fields})
    assert refusal.value.expected or refusal.value.remedy
    return refusal.value.code


def test_a_policy_that_says_nothing_else_asks_for_the_strictest() -> None:
    policy = Policy(root=SIMULATED, sgx=(ENCLAVE,))
    assert policy.tcb_statuses == ("UpToDate",)
    assert policy.accepted_advisories == ()
    assert policy.tcb_grace_days is None
    assert policy.debug == "refused"
    assert policy.sept_ve_disable == "required"
    assert policy.mrservicetd == (NO_SERVICE_TD,)
    assert policy.references("tdx") == ()
    assert policy.legacy_certificates == "refused"


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
        f"preproduction:{'5' * 64}",
        f"{SIMULATED}\n",
        "hardware\n",
    ],
)
def test_a_root_that_is_not_named_exactly_is_refused(root: str) -> None:
    assert refused(root=root, platforms="any") == "policy-root"


def test_a_policy_that_accepts_nothing_is_refused() -> None:
    assert refused(sgx=()) == "policy-empty"
    assert refused(tcb_statuses=()) == "policy-tcb-statuses"
    assert refused(tdx=(DOMAIN,), mrservicetd=()) == "policy-empty"
    assert refused(platforms=()) == "policy-platforms"


@pytest.mark.parametrize("status", ["Revoked", "uptodate", "", "any"])
def test_a_status_that_cannot_be_accepted_is_refused(status: str) -> None:
    assert refused(tcb_statuses=("UpToDate", status)) == "policy-tcb-statuses"


@pytest.mark.parametrize("status", ["OutOfDate", "OutOfDateConfigurationNeeded"])
def test_an_out_of_date_status_needs_a_grace(status: str) -> None:
    assert refused(tcb_statuses=("UpToDate", status)) == "policy-grace"
    Policy(
        root=SIMULATED,
        sgx=(ENCLAVE,),
        tcb_statuses=("UpToDate", "OutOfDate"),
        tcb_grace_days=0,
    )


def test_a_grace_without_an_out_of_date_status_would_be_ignored() -> None:
    assert refused(tcb_grace_days=30) == "policy-grace"


@pytest.mark.parametrize("days", [-1, 36_526])
def test_a_grace_out_of_range_is_refused(days: int) -> None:
    statuses = ("OutOfDate",)
    assert refused(tcb_statuses=statuses, tcb_grace_days=days) == "policy-range"


@pytest.mark.parametrize("number", [-1, 2**32])
def test_an_evaluation_number_out_of_range_is_refused(number: int) -> None:
    assert refused(min_tcb_evaluation_number=number) == "policy-range"


@pytest.mark.parametrize("advisory", ["", "any", "*", "INTEL SA", "A" * 65, "A\n"])
def test_an_advisory_that_is_none_is_refused(advisory: str) -> None:
    assert refused(accepted_advisories=(advisory,)) == "policy-advisory"


@pytest.mark.parametrize("name", ["debug", "sept_ve_disable", "legacy_certificates"])
@pytest.mark.parametrize("rule", ["", "off", True, None])
def test_a_rule_that_is_none_is_refused(name: str, rule: object) -> None:
    assert refused(tdx=(DOMAIN,), **{name: rule}) == "policy-rule"


@pytest.mark.parametrize("digest", ["", "0" * 64, "A" * 96, "any"])
def test_a_service_td_that_is_not_whole_is_refused(digest: str) -> None:
    assert refused(tdx=(DOMAIN,), mrservicetd=(digest,)) == "policy-measurement"


@pytest.mark.parametrize(
    "rule", [{"sept_ve_disable": "any"}, {"mrservicetd": ("7" * 96,)}]
)
def test_a_rule_for_trust_domains_needs_trust_domains(rule: dict[str, Any]) -> None:
    assert refused(**rule) == "policy-ignored"


@pytest.mark.parametrize("root", ["hardware", f"preproduction:sha256:{'5' * 64}"])
def test_real_machines_must_be_named_or_any_said_by_name(root: str) -> None:
    assert refused(root=root) == "policy-platforms"
    assert refused(root=root, platforms=()) == "policy-platforms"
    Policy(root=root, sgx=(ENCLAVE,), platforms="any")
    Policy(root=root, sgx=(ENCLAVE,), platforms=("1" * 32,))


@pytest.mark.parametrize("platform", ["", "1" * 31, "A" * 32, "any", "1" * 32 + "\n"])
def test_a_platform_that_is_none_is_refused(platform: str) -> None:
    assert refused(platforms=(platform,)) == "policy-platforms"


def test_a_policy_is_read_as_the_plan_writes_it() -> None:
    plan = f'root = "{SIMULATED}"\nsgx = [{{ mr_enclave = "{ENCLAVE.mr_enclave}" }}]'
    assert msgspec.toml.decode(plan, type=Policy) == Policy(
        root=SIMULATED, sgx=(ENCLAVE,)
    )


@pytest.mark.parametrize(
    "line",
    [
        "debug = true",
        'debug = "on"',
        "legacy_certificates = true",
        'legacy_certificates = "any"',
        'sgx = [{ mr_enclave = "x" }]',
        "sgx = [{}]",
        "sgx = 1",
        'platforms = "all"',
        'platforms = ["any"]',
        'tcb_statuses = ["Revoked"]',
        'accepted_advisories = "all"',
        'accepted_advisories = ["any"]',
        "accept_everything = true",
        f'tdx = [{{ mrtd = "{"a" * 96}" }}]',
    ],
)
def test_a_policy_with_anything_else_in_it_is_refused(line: str) -> None:
    text = f'root = "{SIMULATED}"\n'
    if not line.startswith("sgx"):
        text += f'sgx = [{{ mr_enclave = "{"a" * 64}" }}]\n'
    with pytest.raises((ConfigError, msgspec.ValidationError)):
        msgspec.toml.decode(text + line, type=Policy)


def test_every_field_changes_the_hash() -> None:
    assert set(OTHER_VALUES) == set(Policy.__struct_fields__)
    changed = [
        msgspec.structs.replace(FULL, **{name: value})
        for name, value in OTHER_VALUES.items()
    ]
    hashes = {policy_sha256(policy) for policy in (FULL, *changed)}
    assert len(hashes) == len(changed) + 1
    assert all(len(digest) == 64 for digest in hashes)


@pytest.mark.parametrize(
    ("field", "reference"),
    [("sgx", ENCLAVE), ("sgx", PRODUCT), ("sgx_exact", EXACT), ("tdx", DOMAIN)],
)
def test_every_value_of_a_reference_changes_the_hash(
    field: str, reference: msgspec.Struct
) -> None:
    base: dict[str, Any] = {"root": SIMULATED, "sgx": (ENCLAVE,)}
    hashes = {policy_sha256(Policy(**{**base, field: (reference,)}))}
    named = [
        n for n in reference.__struct_fields__ if getattr(reference, n) is not None
    ]
    for name in named:
        value = getattr(reference, name)
        other = "9" * len(value) if isinstance(value, str) else value + 1
        changed = msgspec.structs.replace(reference, **{name: other})
        hashes.add(policy_sha256(Policy(**{**base, field: (changed,)})))
    assert len(hashes) == len(named) + 1


def test_order_and_repetition_do_not_change_the_hash() -> None:
    backwards = {
        name: value[::-1] + value
        for name in Policy.__struct_fields__
        if isinstance(value := getattr(FULL, name), tuple)
    }
    assert len(backwards) == 7
    other = msgspec.structs.replace(FULL, **backwards)
    assert policy_sha256(other) == policy_sha256(FULL)


def test_the_hash_does_not_change_between_releases() -> None:
    assert policy_sha256(Policy(root=SIMULATED, sgx=(ENCLAVE,), tdx=(DOMAIN,))) == (
        "6da77d2b0d804fcfac9d8435a26de0168dd46c7754137048ff49d83965f848b8"
    )


def test_a_field_added_later_changes_the_hash() -> None:
    extended: Any = msgspec.defstruct(
        "Policy", [("later", bool, False)], bases=(Policy,), frozen=True, kw_only=True
    )
    plain = Policy(root=SIMULATED, sgx=(ENCLAVE,))
    assert policy_sha256(extended(root=SIMULATED, sgx=(ENCLAVE,))) != policy_sha256(
        plain
    )


@pytest.mark.parametrize("name", Policy.__struct_fields__)
def test_a_policy_cannot_be_changed(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(FULL, name, None)
