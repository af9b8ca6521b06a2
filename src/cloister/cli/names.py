"""Names of parties that come from a command line."""

from __future__ import annotations

import msgspec

from cloister.errors import ConfigError
from cloister.plan.plan import Name


def check_name(name: str) -> None:
    """Refuses a party's name that the plan would, before it becomes a path.

    Raises:
        ConfigError: If it is none.
    """
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise ConfigError(
            "a party's name is unusable",
            code="name-invalid",
            expected="1 to 32 lower-case letters, digits and dashes, no dash first",
            got=repr(name[:80]),
        ) from error
