from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.attestation.example_claims import ROOT, SGX, TDX, example_claims
from tests.unit.attestation.example_policies import (
    REQUIRED_TDX_KEYS,
    SGX_KEYS,
    TDX_KEYS,
    sgx_config,
    tdx_config,
)

from cloister.attestation.claims import Claims
from cloister.attestation.dynamic_config import parse_dynamic_config
from cloister.attestation.policy import Policy, appraise, examine
from cloister.errors import AppraisalError, ConfigError


def parsed(config: object) -> Policy:
    return parse_dynamic_config(json.dumps(config).encode(), root=ROOT)


def refused(config: object) -> ConfigError:
    with pytest.raises(ConfigError) as refusal:
        parsed(config)
    return refusal.value


def accepts_sgx(policy: Policy, **change: Any) -> bool:
    measured = dataclasses.replace(SGX, **change)
    return accepts(example_claims("sgx", measurements=measured), policy)


def accepts_tdx(policy: Policy, **change: Any) -> bool:
    measured = dataclasses.replace(TDX, **change)
    return accepts(example_claims("tdx", measurements=measured), policy)


def accepts(claims: Claims, policy: Policy) -> bool:
    """Whether every check passes; none but the measurement's may fail here."""
    failed = [
        outcome.code
        for outcome in examine(claims, policy)
        if isinstance(outcome, AppraisalError)
    ]
    assert failed in ([], ["appraisal-measurement"])
    return not failed


OTHER: dict[str, Any] = {
    "mr_enclave": "e" * 64,
    "mr_signer": "e" * 64,
    "isv_prod_id": 4,
    "isv_svn": 8,
}


@pytest.mark.parametrize(
    "on",
    [
        SGX_KEYS,
        ("mr_enclave",),
        ("mr_signer",),
        ("mr_signer", "isv_prod_id"),
        ("mr_signer", "isv_svn"),
        ("mr_enclave", "mr_signer"),
        ("mr_enclave", "isv_svn"),
    ],
)
def test_inside_an_entry_everything_switched_on_must_be_equal(
    on: tuple[str, ...],
) -> None:
    policy = parsed(sgx_config(*on))
    assert accepts_sgx(policy)
    for key in SGX_KEYS:
        assert accepts_sgx(policy, **{key: OTHER[key]}) == (key not in on), key


def test_a_security_version_is_compared_for_equality_as_there() -> None:
    policy = parsed(sgx_config(*SGX_KEYS))
    assert not accepts_sgx(policy, isv_svn=SGX.isv_svn + 1)
    assert not accepts_sgx(policy, isv_svn=SGX.isv_svn - 1)


def test_across_entries_one_is_enough_and_they_do_not_mix() -> None:
    first = sgx_config()["sgx_mrs"][0]
    second = {**first, "mr_enclave": "e" * 64, "isv_svn": "8"}
    config = sgx_config("mr_enclave", "isv_svn", entries=[first, second])
    policy = parsed(config)
    assert accepts_sgx(policy)
    assert accepts_sgx(policy, mr_enclave="e" * 64, isv_svn=8)
    assert not accepts_sgx(policy, mr_enclave="e" * 64)
    assert not accepts_sgx(policy, isv_svn=8)


def test_a_trust_domain_is_compared_in_what_is_switched_on() -> None:
    policy = parsed(tdx_config())
    assert accepts_tdx(policy)
    for key, name in TDX_KEYS.items():
        assert accepts_tdx(policy, **{name: "9" * 96}) == (
            key not in REQUIRED_TDX_KEYS
        ), key
    for key, name in TDX_KEYS.items():
        more = parsed(tdx_config(key))
        assert accepts_tdx(more)
        assert not accepts_tdx(more, **{name: "9" * 96}), key


def test_everything_the_file_has_no_word_for_is_the_strictest() -> None:
    for config in (sgx_config("mr_enclave"), tdx_config()):
        policy = parsed(config)
        assert policy.root == ROOT
        assert policy.platforms == "any"
        assert policy.tcb_statuses == ("UpToDate",)
        assert policy.accepted_advisories == ()
        assert policy.debug == "refused"
        assert policy.sept_ve_disable == "required"


def test_it_is_closed_for_the_other_kind_of_environment() -> None:
    for policy, tee in (
        (parsed(sgx_config("mr_enclave")), "tdx"),
        (parsed(tdx_config()), "sgx"),
    ):
        with pytest.raises(AppraisalError):
            appraise(example_claims("tdx" if tee == "tdx" else "sgx"), policy)


def test_values_may_be_written_in_upper_case_and_numbers_as_numbers() -> None:
    entry = {
        "mr_enclave": SGX.mr_enclave.upper(),
        "mr_signer": SGX.mr_signer.upper(),
        "isv_prod_id": SGX.isv_prod_id,
        "isv_svn": SGX.isv_svn,
    }
    assert parsed(sgx_config(*SGX_KEYS, entries=[entry])) == parsed(
        sgx_config(*SGX_KEYS)
    )


def test_values_that_are_switched_off_may_be_empty_as_in_the_template() -> None:
    entry = {**dict.fromkeys(SGX_KEYS, ""), "mr_signer": SGX.mr_signer}
    assert accepts_sgx(parsed(sgx_config("mr_signer", entries=[entry])))
    config = tdx_config()
    for key in set(TDX_KEYS) - set(REQUIRED_TDX_KEYS):
        config["tdx_mrs"][0][key] = ""
    assert accepts_tdx(parsed(config))


@pytest.mark.parametrize(
    "switch", ["", "o", "onX", "ON", "on ", "no", "true", True, None, 1, ["on"]]
)
@pytest.mark.parametrize("key", SGX_KEYS)
def test_a_switch_that_is_neither_on_nor_off_is_refused(
    switch: object, key: str
) -> None:
    config = {**sgx_config("mr_enclave", "mr_signer"), f"verify_{key}": switch}
    error = refused(config)
    assert error.code == "dynamic-config-switch"
    assert f"verify_{key}" in error.what


def test_all_switches_off_are_refused() -> None:
    assert refused(sgx_config()).code == "dynamic-config-all-off"
    config = {key: "off" for key in tdx_config() if key != "tdx_mrs"}
    config["tdx_mrs"] = tdx_config()["tdx_mrs"]
    assert refused(config).code == "dynamic-config-all-off"


@pytest.mark.parametrize("on", [("isv_svn",), ("isv_prod_id", "isv_svn")])
def test_numbers_alone_are_refused(on: tuple[str, ...]) -> None:
    assert refused(sgx_config(*on)).code == "dynamic-config-too-open"


@pytest.mark.parametrize("key", REQUIRED_TDX_KEYS)
def test_a_trust_domain_without_one_of_the_four_is_refused(key: str) -> None:
    error = refused({**tdx_config("rt_mr3"), f"verify_{key}": "off"})
    assert error.code == "dynamic-config-too-open"
    assert f"verify_{key}" in error.got


@pytest.mark.parametrize(
    "text", ["", "a" * 63, "a" * 65, "g" * 64, "0x" + "a" * 62, " " * 64, None, 7]
)
@pytest.mark.parametrize("key", ["mr_enclave", "mr_signer"])
def test_a_measurement_that_is_not_whole_is_refused(text: object, key: str) -> None:
    config = sgx_config("mr_enclave", "mr_signer")
    config["sgx_mrs"][0][key] = text
    error = refused(config)
    assert error.code == "dynamic-config-value"
    assert f"sgx_mrs[0].{key}" in error.what


@pytest.mark.parametrize("text", ["", "a" * 64, "g" * 96])
@pytest.mark.parametrize("key", REQUIRED_TDX_KEYS)
def test_a_register_that_is_not_whole_is_refused(text: str, key: str) -> None:
    config = tdx_config()
    config["tdx_mrs"][0][key] = text
    assert refused(config).code == "dynamic-config-value"


@pytest.mark.parametrize(
    "number",
    ["", "-1", "65536", "1.0", "0x1", "01", " 1", "\u0661", -1, 65_536, True, None],
)
@pytest.mark.parametrize("key", ["isv_prod_id", "isv_svn"])
def test_a_number_that_no_enclave_can_have_is_refused(number: object, key: str) -> None:
    config = sgx_config(*SGX_KEYS)
    config["sgx_mrs"][0][key] = number
    assert refused(config).code == "dynamic-config-value"


def test_a_malformed_value_is_refused_even_where_it_is_switched_off() -> None:
    config = sgx_config("mr_enclave")
    config["sgx_mrs"][0]["mr_signer"] = "b" * 63
    assert refused(config).code == "dynamic-config-value"


@pytest.mark.parametrize("key", [f"verify_{key}" for key in SGX_KEYS])
def test_a_missing_switch_is_refused(key: str) -> None:
    config = sgx_config(*SGX_KEYS)
    del config[key]
    error = refused(config)
    assert error.code == "dynamic-config-keys"
    assert f"no {key}" in error.got


@pytest.mark.parametrize("key", SGX_KEYS)
def test_a_missing_value_is_refused_even_where_it_is_switched_off(key: str) -> None:
    config = sgx_config("mr_enclave")
    del config["sgx_mrs"][0][key]
    assert refused(config).code == "dynamic-config-keys"


def test_a_switch_that_would_be_ignored_is_refused() -> None:
    for extra in ("verify_config_svn", "verify_enclave_debuggable", "verify_mr_td"):
        assert refused({**sgx_config("mr_enclave"), extra: "on"}).code == (
            "dynamic-config-keys"
        )
    config = sgx_config("mr_enclave")
    config["sgx_mrs"][0]["debuggable"] = False
    assert refused(config).code == "dynamic-config-keys"


def test_neither_list_or_both_are_refused() -> None:
    config = sgx_config("mr_enclave")
    del config["sgx_mrs"]
    assert refused(config).code == "dynamic-config-kind"
    assert refused({**sgx_config("mr_enclave"), **tdx_config()}).code == (
        "dynamic-config-kind"
    )


@pytest.mark.parametrize("entries", [[], {}, "", None, 1])
def test_a_list_without_entries_is_refused(entries: Any) -> None:
    config = {**sgx_config("mr_enclave"), "sgx_mrs": entries}
    assert refused(config).code == "dynamic-config-entries"


def test_more_entries_than_the_reference_reads_are_refused() -> None:
    entry = sgx_config()["sgx_mrs"][0]
    parsed(sgx_config("mr_enclave", entries=[entry] * 16))
    many = sgx_config("mr_enclave", entries=[entry] * 17)
    assert refused(many).code == "dynamic-config-entries"


@pytest.mark.parametrize("entry", [[], "", None, 1])
def test_an_entry_that_is_no_object_is_refused(entry: Any) -> None:
    config = sgx_config("mr_enclave", entries=[entry])
    assert refused(config).code == "dynamic-config-malformed"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"verify_mr_enclave": NaN}',
        b"{}" + b" " * 300_000,
        # As CCZoo's own README writes it, with a comma too many.
        json.dumps(sgx_config("mr_enclave")).encode()[:-1] + b",}",
    ],
)
def test_what_is_not_strict_json_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_dynamic_config(text, root=ROOT)
    assert refusal.value.code in {"dynamic-config-malformed", "dynamic-config-kind"}


def test_a_key_given_twice_is_refused_at_any_depth() -> None:
    text = json.dumps(sgx_config("mr_enclave"))
    for once, twice in (
        ('{"verify_mr_enclave"', '{"verify_mr_enclave": "off", "verify_mr_enclave"'),
        ('{"mr_enclave"', f'{{"mr_enclave": "{"e" * 64}", "mr_enclave"'),
    ):
        assert once in text
        with pytest.raises(ConfigError) as refusal:
            parse_dynamic_config(text.replace(once, twice).encode(), root=ROOT)
        assert refusal.value.code == "dynamic-config-malformed"


def test_a_root_that_is_not_named_exactly_is_refused() -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_dynamic_config(json.dumps(tdx_config()).encode(), root="any")
    assert refusal.value.code == "policy-root"


@given(
    key=st.sampled_from([*(f"verify_{key}" for key in SGX_KEYS), "sgx_mrs", "new"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(SGX_KEYS), inner, max_size=4)
        ),
        max_leaves=6,
    ),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_other_value_is_refused_by_one_of_our_errors(
    key: str, value: object
) -> None:
    if value not in ("on", "off"):
        refused({**sgx_config("mr_enclave"), key: value})
