"""Puts what this machine measures into a plan's text, in place of what stands there.

Everything else in the file stays, comments too. A plan that accepts several builds of a
role is left to its authors: which of them is meant, no program can know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cloister.attestation.platforms.measurement import Measurement
from cloister.errors import ConfigError
from cloister.plan.plan import Role

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
