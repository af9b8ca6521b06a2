"""Reads a TOML file into a closed schema, or says what is wrong with which key.

Closed means that an unknown key is an error: a misspelt setting that is silently
ignored would change what the parties agreed on.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from cloister.errors import ConfigError

Document = TypeVar("Document", bound=msgspec.Struct)

# A site file is a page of text, and a plan of a thousand parties some 300 kB; more than
# this is neither.
MAX_FILE_BYTES = 1024 * 1024
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$(?P<path>[^`]*)`)?")
_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")


def read_toml(path: Path, schema: type[Document], *, what: str) -> Document:
    """Returns the file at `path` as a `schema`.

    Args:
        path: A TOML file.
        schema: The msgspec structure it must fit exactly.
        what: What the file is to the user, for messages ("plan", "site file").

    Raises:
        ConfigError: If the file is missing, too large, not TOML, or does not fit.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the {what}",
            code="file-unreadable",
            expected=f"a readable file at {path}",
            got=error.strerror or "an error",
            remedy="Give its path, or make a deployment with: cloister init DIR.",
        ) from error
    return parse_toml(text, schema, what=f"{what} {path}")


def parse_toml(text: bytes, schema: type[Document], *, what: str) -> Document:
    """Returns TOML `text` as a `schema`.

    Raises:
        ConfigError: If it is too large, not TOML in UTF-8, or does not fit.
    """
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{what} is too large",
            code="file-too-large",
            expected=f"at most {MAX_FILE_BYTES} bytes",
            got="more",
        )
    try:
        tree = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{what} is not valid TOML", code="toml-invalid", got=str(error)
        ) from error
    try:
        return msgspec.convert(tree, schema)
    except msgspec.ValidationError as error:
        raise _explain(error, schema, what) from error


def _explain(
    error: msgspec.ValidationError, schema: type[msgspec.Struct], what: str
) -> ConfigError:
    message = str(error)
    if unknown := _UNKNOWN.search(message):
        key, at = unknown["key"], (unknown["path"] or "").lstrip(".")
        known = _known_keys(schema, at)
        close = difflib.get_close_matches(key, known, n=1)
        return ConfigError(
            f"{what}: unknown key {key!r} in [{at or 'top level'}]",
            code="key-unknown",
            expected=f"one of {', '.join(known)}" if known else "",
            remedy=f"Did you mean {close[0]!r}?" if close else "Remove it.",
        )
    place = _AT.search(message)
    where = place["path"].lstrip(".") if place else ""
    return ConfigError(
        f"{what}: {where or 'the file'} does not fit: {_AT.sub('', message)}",
        code="value-invalid",
        remedy="Correct the value; docs/how-to/plan.md lists every key.",
    )


def _known_keys(schema: type[msgspec.Struct], path: str) -> list[str]:
    """Returns the keys allowed at a msgspec path such as ``party[0]``."""
    node: type[msgspec.Struct] = schema
    for part in filter(None, re.sub(r"\[[^]]*\]", "", path).split(".")):
        for field in msgspec.structs.fields(node):
            if field.encode_name == part:
                found = _struct_in(field.type)
                if found is None:
                    return []
                node = found
                break
        else:
            return []
    return [field.encode_name for field in msgspec.structs.fields(node)]


def _struct_in(annotation: object) -> type[msgspec.Struct] | None:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _struct_in(argument)) is not None:
            return found
    return None
