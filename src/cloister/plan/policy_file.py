"""Policies in files: one role's in TOML, a plan's, or CCZoo's ``dynamic_config.json``.

A party's own policy, and what `cloister quote verify` is asked to compare with, are
files of their own; in the plan the same table stands under ``[policy.ROLE]``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cloister.attestation.dynamic_config import parse_dynamic_config
from cloister.attestation.policy import Policy
from cloister.errors import ConfigError
from cloister.plan.plan import Policies, parse_plan
from cloister.plan.toml import MAX_FILE_BYTES, parse_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """What stands in a policy file.

    Attributes:
        policies: The policies by role; a file of one policy has it under "".
        names_root: Whether the file itself says under which root.
    """

    policies: Mapping[str, Policy]
    names_root: bool


class _RoleTables(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """A file that holds nothing but a plan's policies."""

    policy: Policies


def read_policy(path: Path, *, root: str) -> Policy:
    """Returns the one policy in the file at `path`.

    Args:
        path: A policy in TOML, or a ``dynamic_config.json``.
        root: The trust root, as a policy names it, for a file that cannot name one.

    Raises:
        ConfigError: If the file is missing, malformed, or holds one for each role.
    """
    policies = read_policy_file(path, root=root).policies
    if len(policies) != 1:
        raise ConfigError(
            f"{path} holds more than one policy",
            code="policy-role",
            expected="a file with one role's policy",
            got=f"policies for {' and '.join(policies)}",
            remedy="`cloister policy from-measurements PLAN --role ROLE` writes one",
        )
    return next(iter(policies.values()))


def read_policy_file(path: Path, *, root: str) -> PolicyFile:
    """Returns every policy in the file at `path`.

    Args:
        path: A policy in TOML, a plan, a plan's ``[policy.ROLE]`` tables alone, or a
            ``dynamic_config.json``.
        root: The trust root, as a policy names it, for a file that cannot name one.

    Raises:
        ConfigError: If the file is missing or malformed.
    """
    text = _read(path)
    # No TOML file begins with a brace, and every JSON object does.
    if text.lstrip()[:1] == b"{":
        policies = {"": parse_dynamic_config(text, root=root)}
        return PolicyFile(policies=policies, names_root=False)
    return PolicyFile(policies=_parse_policies(text, path), names_root=True)


def format_policy(policy: Policy, *, table: str | None = None) -> str:
    """Returns `policy` in TOML, without the fields that are at their default.

    Args:
        policy: What to write.
        table: The table it stands in, such as "policy.worker"; None for a file of its
            own.
    """
    lines = [] if table is None else [f"[{table}]"]
    for field in msgspec.structs.fields(policy):
        value = getattr(policy, field.name)
        if field.required or value != field.default:
            lines.append(f"{field.encode_name} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            "cannot read the policy",
            code="file-unreadable",
            expected=f"a readable file at {path}",
            got=error.strerror or "an error",
            remedy="a policy is never guessed: give the file's path",
        ) from error
    return text


def _top_level_keys(text: bytes) -> frozenset[str]:
    """Returns a TOML file's keys; none where it is not TOML, which the schema says."""
    try:
        return frozenset(tomllib.loads(text[: MAX_FILE_BYTES + 1].decode()))
    except (ValueError, RecursionError):
        return frozenset()


def _parse_policies(text: bytes, path: Path) -> dict[str, Policy]:
    keys = _top_level_keys(text)
    if "plan" in keys:
        return _by_role(parse_plan(text).policy)
    what = f"policy {path}"
    if "policy" in keys:
        return _by_role(parse_toml(text, _RoleTables, what=what).policy)
    return {"": parse_toml(text, Policy, what=what)}


def _by_role(policies: Policies) -> dict[str, Policy]:
    # A plan has no policy for roles that it does not have, or that are not attested.
    by_role = {
        "server": policies.server,
        "worker": policies.worker,
        "recipient": policies.recipient,
    }
    return {role: policy for role, policy in by_role.items() if policy is not None}


def _toml_value(value: object) -> str:
    if isinstance(value, msgspec.Struct):
        pairs = (
            f"{field.encode_name} = {_toml_value(inner)}"
            for field in msgspec.structs.fields(value)
            if (inner := getattr(value, field.name)) is not None
        )
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, tuple):
        return "[\n" + "".join(f"    {_toml_value(it)},\n" for it in value) + "]"
    # What a policy can hold beside these, ASCII text and numbers, is written alike.
    return json.dumps(value)
