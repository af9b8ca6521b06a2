"""Checks of a task's options, which come from the plan and may be anything.

Each returns the value in its type, or ends in a `ConfigError` with code
``option-invalid`` that names the option.
"""

from __future__ import annotations

from cloister.errors import ConfigError


def whole_number(name: str, value: object, *, least: int) -> int:
    """Returns `value` if it is an integer of at least `least`.

    Raises:
        ConfigError: If it is not.
    """
    # A TOML true is an int to Python, but nobody means 1 by it.
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise option_error(name, value, expected=f"a whole number, {least} or more")


def weight(name: str, value: object) -> float:
    """Returns `value` if it is a number above 0 and at most 1.

    Raises:
        ConfigError: If it is not.
    """
    if isinstance(value, int | float) and value is not True and 0 < value <= 1:
        return float(value)
    raise option_error(name, value, expected="a number above 0 and at most 1")


def switch(name: str, value: object) -> bool:
    """Returns `value` if it is true or false.

    Raises:
        ConfigError: If it is not.
    """
    if isinstance(value, bool):
        return value
    raise option_error(name, value, expected="true or false")


def option_error(name: str, value: object, *, expected: str) -> ConfigError:
    """Returns the error that refuses an option's value."""
    return ConfigError(
        f"the task's option {name} cannot be used",
        code="option-invalid",
        expected=expected,
        got=repr(value),
        remedy="Correct [task] options in the plan.",
    )
