"""The rules between the plan's policies and its parties."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloister.errors import ConfigError

if TYPE_CHECKING:
    from cloister.attestation.policy import Policy
    from cloister.plan.parties import Party
    from cloister.plan.sections import Policies


def check_policies(policies: Policies, parties: tuple[Party, ...]) -> None:
    """Refuses policies that do not fit those who are held to them.

    Raises:
        ConfigError: If a policy is missing, nobody is held to one, a setting would be
            ignored, roles are held to two roots, or a party's machine is not listed.
    """
    given: dict[str, Policy | None] = {
        "server": policies.server,
        "worker": policies.worker,
        "recipient": policies.recipient,
    }
    for role, policy in given.items():
        of_role = [party for party in parties if party.role == role]
        attested = [party for party in of_role if party.admit == "attested"]
        if policy is None:
            _refuse_missing(role, attested)
            continue
        if not attested:
            raise ConfigError(
                "a policy would be ignored",
                code="policy-unused",
                expected=f"[policy.{role}] only with a {role} that is attested",
                got="admit = 'identity' for all" if of_role else f"no {role}",
                remedy=f"Remove it, or have a {role} attested.",
            )
        _check_policy(role, policy, root=policies.server.root)
        _check_platforms(role, policy, attested)


def _refuse_missing(role: str, attested: list[Party]) -> None:
    if attested:
        raise ConfigError(
            f"no policy says what {', '.join(it.name for it in attested)} must prove",
            code="policy-missing",
            expected=f"[policy.{role}] for {role}s that are attested",
        )


def _check_policy(role: str, policy: Policy, *, root: str) -> None:
    if policy.legacy_certificates != "refused":
        raise ConfigError(
            f"[policy.{role}] legacy_certificates would be ignored",
            code="policy-ignored",
            expected="the setting only in policies for certificates of others",
            remedy="Nodes never take evidence from a legacy certificate.",
        )
    if policy.root != root:
        raise ConfigError(
            "the plan mixes trust roots",
            code="roots-mixed",
            expected="one root for all roles",
            got=f"{root} and {policy.root}",
        )


def _check_platforms(role: str, policy: Policy, attested: list[Party]) -> None:
    """Refuses a party's machine that its role's policy does not list."""
    listed = policy.platforms
    if not isinstance(listed, tuple):
        return
    for party in attested:
        if unlisted := [it for it in party.platforms or () if it not in listed]:
            raise ConfigError(
                f"{party.name!r} has platforms that its role's policy does not list",
                code="platforms-unlisted",
                expected=f"some of [policy.{role}] platforms",
                got=", ".join(unlisted),
                remedy="A party's list narrows the policy's: add them to both.",
            )
