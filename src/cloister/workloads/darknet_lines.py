"""The lines of a Darknet configuration: sections, keys, and values of a known type.

A section begins with ``[name]``; below it stand lines ``key=value``. Empty lines and
lines that begin with ``#`` or ``;`` say nothing. Darknet reads a value as far as it
makes sense to it and takes zero for the rest, skips keys that it does not know, and
takes the first of two. Here all of that is refused, by the number of the line: what
trains must be what the file says.

What sections and keys mean is not known here; that is `darknet_config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cloister.errors import ConfigError

# Darknet's own largest configurations have some 50 KB; a plan carries the text.
MAX_CHARACTERS: Final = 2**18

_BLANK: Final = " \t\r"
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_REAL = re.compile(
    r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})(e[+-]?[0-9]{1,2})?"
)
_SHOWN: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line ``key=value``.

    Attributes:
        line: Counts from 1.
        key: Before the first ``=``, without blanks around it.
        value: After it, likewise.
    """

    line: int
    key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A section's lines, to be taken one key at a time.

    Attributes:
        line: Where it begins.
        name: In the brackets.
        entries: By key; what was taken stays.
    """

    line: int
    name: str
    entries: dict[str, Entry] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    def line_of(self, key: str) -> int:
        """Returns the line of a key; the section's where the key is left out."""
        entry = self.entries.get(key)
        return self.line if entry is None else entry.line

    def whole(self, key: str, default: int, *, least: int, most: int) -> int:
        """Returns a whole number.

        Raises:
            ConfigError: If the value is none from `least` to `most`.
        """
        value = self.text(key, str(default))
        number = int(value) if _WHOLE.fullmatch(value) else None
        if number is not None and least <= number <= most:
            return number
        raise self._wrong(key, expected=f"a whole number from {least} to {most}")

    def number(self, key: str, default: float) -> float:
        """Returns a number, finite as all that can be written here.

        Raises:
            ConfigError: If the value is none.
        """
        value = self.text(key, repr(default)).lower()
        if _REAL.fullmatch(value):
            return float(value)
        raise self._wrong(key, expected="a number")

    def numbers(self, key: str) -> tuple[float, ...]:
        """Returns numbers parted by commas; none where the key is left out.

        Raises:
            ConfigError: If a value is none.
        """
        parts = [part.strip(_BLANK) for part in self.text(key, "").lower().split(",")]
        if parts == [""] and key not in self.entries:
            return ()
        if all(_REAL.fullmatch(part) for part in parts):
            return tuple(float(part) for part in parts)
        raise self._wrong(key, expected="numbers, parted by commas")

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """Returns one of some words.

        Raises:
            ConfigError: If the value is another one.
        """
        value = self.text(key, default)
        if value in choices:
            return value
        raise self._wrong(key, expected=f"one of {', '.join(choices)}")

    def neutral(self, key: str, value: int) -> None:
        """Refuses a setting that we do not have, unless it is switched off.

        Raises:
            ConfigError: If it is not.
        """
        if self.number(key, value) != value:
            raise self._wrong(key, expected=f"{value}: no other value is supported")

    def finish(self) -> None:
        """Refuses keys that nobody took.

        Raises:
            ConfigError: If there is one.
        """
        for entry in self.entries.values():
            if entry.key not in self._taken:
                raise line_error(
                    entry.line,
                    f"[{self.name}] has no key {shown(entry.key)} that is supported",
                    expected=f"one of {', '.join(sorted(self._taken)) or 'no keys'}",
                    got=shown(entry.value),
                )

    def text(self, key: str, default: str) -> str:
        """Returns the value as it stands there."""
        self._taken.add(key)
        entry = self.entries.get(key)
        return default if entry is None else entry.value

    def _wrong(self, key: str, *, expected: str) -> ConfigError:
        return line_error(
            self.line_of(key),
            f"[{self.name}] {key} cannot be used",
            expected=expected,
            got=shown(self.text(key, "nothing")),
        )


def sections_of(text: str) -> Iterator[Section]:
    """Yields the sections of a configuration, in their order.

    Raises:
        ConfigError: If a line is neither of the forms above, a key stands twice in a
            section, or the text is too long (``darknet-config``).
    """
    if len(text) > MAX_CHARACTERS:
        raise line_error(
            1,
            "the text is too long",
            expected=f"at most {MAX_CHARACTERS} characters",
            got=str(len(text)),
        )
    section: Section | None = None
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip(_BLANK)
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            if section is not None:
                yield section
            section = Section(line=number, name=_name(number, line))
        elif section is None:
            raise line_error(
                number,
                "a key stands before the first section",
                expected="[net]",
                got=shown(line),
            )
        else:
            _add(section, _entry(number, line))
    if section is not None:
        yield section


def line_error(line: int, what: str, *, expected: str, got: str) -> ConfigError:
    """Returns the error that refuses a line."""
    return ConfigError(
        f"line {line} of the Darknet configuration: {what}",
        code="darknet-config",
        expected=expected,
        got=got,
        remedy="Correct the configuration in the plan's [task] options.",
    )


def _name(number: int, line: str) -> str:
    if line.endswith("]"):
        return line[1:-1].strip(_BLANK)
    raise line_error(
        number,
        "the section's name is not closed",
        expected="[name]",
        got=shown(line),
    )


def _entry(number: int, line: str) -> Entry:
    key, equals, value = line.partition("=")
    if equals and key.strip(_BLANK):
        return Entry(line=number, key=key.strip(_BLANK), value=value.strip(_BLANK))
    raise line_error(
        number,
        "this is no setting",
        expected="key=value",
        got=shown(line),
    )


def _add(section: Section, entry: Entry) -> None:
    if entry.key in section.entries:
        raise line_error(
            entry.line,
            f"[{section.name}] {shown(entry.key)} is set twice",
            expected="each key once in a section",
            got=f"it stands in line {section.line_of(entry.key)} too",
        )
    section.entries[entry.key] = entry


def section_error(section: Section, what: str, *, expected: str) -> ConfigError:
    """Returns the error that refuses a section."""
    got = f"section {shown(section.name)}"
    return line_error(section.line, what, expected=expected, got=got)


def shown(text: str) -> str:
    """Returns text of a configuration for a message, which stays on one line."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
