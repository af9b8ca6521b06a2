"""Single values as TOML text (https://toml.io/en/v1.0.0), for plans that we write.

JSON looks alike and is not: it escapes characters by halves, leaves DEL as it is, and
knows neither infinities nor bounds. Whatever is no printable ASCII is escaped here: a
person who is about to sign the plan sees that it is there, and the text is the same in
every encoding that a file may be written in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from cloister.errors import ConfigError
from cloister.plan.values import Option

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def toml_table(values: Mapping[str, Option]) -> str:
    """Returns an inline table.

    Raises:
        ConfigError: If TOML has no such value; it is named (``value-invalid``).
    """
    pairs = (
        f"{_key(name)} = {toml_value(value, name=name)}"
        for name, value in values.items()
    )
    return "{ " + ", ".join(pairs) + " }"


def toml_value(value: Option, *, name: str) -> str:
    """Returns a value.

    Args:
        value: The value.
        name: What it is called, for messages.

    Raises:
        ConfigError: If it is no finite number, integer of 64 bits, truth value or text
            of whole characters (``value-invalid``).
    """
    # Options come from notebooks, too, where nobody has checked their types.
    unchecked: object = value
    match unchecked:
        case bool():
            return "true" if unchecked else "false"
        case int() if -(2**63) <= unchecked < 2**63:
            return int.__repr__(unchecked)
        case int():
            raise _not_toml(name, expected="an integer of 64 bits", got="a longer one")
        case float() if math.isfinite(unchecked):
            return float.__repr__(unchecked)
        case float():
            raise _not_toml(name, expected="a finite number", got=str(float(unchecked)))
        case str():
            return _string(unchecked, name=name)
        case _:
            got = type(unchecked).__name__
            raise _not_toml(name, expected="text, a number, True or False", got=got)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name, name=name)


def _string(text: str, *, name: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _not_toml(
            name,
            expected="text of whole characters",
            got="half a character (a lone surrogate)",
        )
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if " " <= character <= "~":
        return character
    number = ord(character)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def _not_toml(name: str, *, expected: str, got: str) -> ConfigError:
    return ConfigError(
        f"{name!a} cannot stand in a plan",
        code="value-invalid",
        expected=expected,
        got=got,
        remedy="Give another value.",
    )
