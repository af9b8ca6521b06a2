"""Puts what this machine measures into a plan's text, in place of what stands there.

Everything else in the file stays, comments too. A plan that accepts several builds of a
role is left to its authors: which of them is meant, no program can know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.policy import Policy
from cloister.errors import ConfigError
from cloister.plan.plan import Plan, Role

_NAMES = ("mr_enclave", "mrtd", "rtmr0", "rtmr1", "rtmr2")
_SECTION = re.compile(
    r"^\[{1,2}policy\.(\w+)[.\]].*?(?=^\[|\Z)", re.MULTILINE | re.DOTALL
)


def with_measurements(text: str, measured: Mapping[Role, Measurement]) -> str:
    """Returns the text of a plan whose policies ask for these measurements.

    Args:
        text: The plan.
        measured: What a node of each role measures.

    Raises:
        ConfigError: If a role's policy names no measurement, or one of them more than
            once (``policy-ambiguous``).
    """
    sections = list(_SECTION.finditer(text))
    for role in dict.fromkeys(section[1] for section in sections):
        _check_once(role, [it[0] for it in sections if it[1] == role])
    values = {str(role): measurement for role, measurement in measured.items()}

    def rewritten(section: re.Match[str]) -> str:
        body, measurement = section[0], values.get(section[1])
        for name in _NAMES if measurement else ():
            value: bytes = getattr(measurement, name)
            body = _pattern(name).sub(rf"\g<1>{value.hex()}\g<2>", body)
        return body

    return _SECTION.sub(rewritten, text)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"""(\b{name}\s*=\s*["'])[0-9A-Fa-f]+(["'])""")


def _check_once(role: str, sections: list[str]) -> None:
    found = {
        name: sum(len(_pattern(name).findall(section)) for section in sections)
        for name in _NAMES
    }
    if max(found.values()) == 1:
        return
    raise ConfigError(
        f"it is not clear which measurements of the {role} to replace",
        code="policy-ambiguous",
        expected=f"each of {', '.join(_NAMES)} at most once in [policy.{role}], and at"
        " least one of them",
        got=", ".join(f"{name} {count} times" for name, count in found.items() if count)
        or "none",
        remedy="Edit the plan; `cloister measure PLAN` prints the values.",
    )


def check_asks_for(plan: Plan, measured: Mapping[Role, Measurement]) -> None:
    """Checks that a plan's policies ask for these measurements and no others.

    Raises:
        ConfigError: If one does not (``policy-ambiguous``).
    """
    for role, measurement in measured.items():
        policy: Policy | None = getattr(plan.policy, role)
        if policy is None:
            continue
        wanted = {name: getattr(measurement, name).hex() for name in _NAMES}
        asked = [("mr_enclave", it.mr_enclave) for it in policy.sgx]
        asked += [(name, getattr(it, name)) for it in policy.tdx for name in _NAMES[1:]]
        differing = [name for name, value in asked if value != wanted[name]]
        if differing or not asked:
            raise ConfigError(
                f"the measurements of the {role} are spelled in a way that this does"
                " not edit",
                code="policy-ambiguous",
                expected=f"[policy.{role}] with sgx and tdx as `cloister init` writes"
                " them",
                got=f"{', '.join(differing) or 'none'} as before",
                remedy="Edit the plan; `cloister measure PLAN` prints the values.",
            )
