from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.plan_tree import add_recipient, by_identity, plan_tree, toml_of
from tests.unit.attestation.example_policies import (
    FULL,
    OPEN,
    SIMULATED,
    STRICT,
    sgx_config,
)

from cloister.attestation.policy import Policy
from cloister.errors import ConfigError
from cloister.plan.plan import parse_plan
from cloister.plan.policy_file import format_policy, read_policy, read_policy_file


def code_of(path: Path) -> str:
    with pytest.raises(ConfigError) as refusal:
        read_policy(path, root=SIMULATED)
    return refusal.value.code


@pytest.mark.parametrize("policy", [STRICT, OPEN, FULL])
def test_a_policy_that_is_written_is_read_again(policy: Policy, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(format_policy(policy))
    assert read_policy(path, root="hardware") == policy
    assert read_policy_file(path, root="hardware").names_root


def test_what_is_at_its_default_is_not_written() -> None:
    assert format_policy(STRICT) == (
        f'root = "{SIMULATED}"\nsgx = [\n    {{ mr_enclave = "{"a" * 64}" }},\n]\n'
    )


def test_a_plans_tables_are_read_by_role(tmp_path: Path) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(
        format_policy(STRICT, table="policy.server")
        + "\n"
        + format_policy(FULL, table="policy.worker")
    )
    assert read_policy_file(path, root="hardware").policies == {
        "server": STRICT,
        "worker": FULL,
    }
    assert code_of(path) == "policy-role"


def test_json_is_read_as_the_references_file(tmp_path: Path) -> None:
    path = tmp_path / "dynamic_config.json"
    path.write_text("\n " + json.dumps(sgx_config("mr_enclave")))
    assert read_policy(path, root=SIMULATED).root == SIMULATED
    assert not read_policy_file(path, root=SIMULATED).names_root


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "value-invalid"),
        (b"root = ", "toml-invalid"),
        (b"\xff", "toml-invalid"),
        (b"roots = 1", "key-unknown"),
        (b'root = "hardware"', "policy-platforms"),
        (b"[policy]", "value-invalid"),
        (b"[plan]", "value-invalid"),
        (b"{", "dynamic-config-malformed"),
        (b"#" * 1_048_577, "file-too-large"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(
    text: bytes, code: str, tmp_path: Path
) -> None:
    path = tmp_path / "policy"
    path.write_bytes(text)
    assert code_of(path) in {code, "policy-empty"}


def test_a_missing_file_is_refused_and_never_guessed(tmp_path: Path) -> None:
    assert code_of(tmp_path / "policy.toml") == "file-unreadable"


def test_the_recipients_policy_of_a_plan_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(toml_of(add_recipient(plan_tree(), "rita")))
    policies = read_policy_file(path, root="hardware").policies
    assert list(policies) == ["server", "worker", "recipient"]
    assert policies["recipient"] == parse_plan(path.read_bytes()).policy.recipient


def test_a_plan_without_attested_workers_holds_the_servers_policy(
    tmp_path: Path,
) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(toml_of(by_identity(plan_tree(), "alice", "bob")))
    assert list(read_policy_file(path, root="hardware").policies) == ["server"]
