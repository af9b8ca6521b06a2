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
_STEP = re.compile(r"(?P<key>[^.\[\]]+)|\[(?P<index>[^]]*)\]")
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
        raise _explain(error, schema, what=what, tree=tree) from error
    except ValueError as error:
        # An integer of more digits than Python writes out, where none is to be.
        raise ConfigError(
            f"{what} holds a value that nobody can read",
            code="value-invalid",
            expected="integers of 64 bits",
            got=str(error)[:200],
        ) from error


def _explain(
    error: msgspec.ValidationError,
    schema: type[msgspec.Struct],
    *,
    what: str,
    tree: object,
) -> ConfigError:
    message = str(error)
    if unknown := _UNKNOWN.search(message):
        key, at = unknown["key"], (unknown["path"] or "").lstrip(".")
        known = _known_keys(schema, at, tree)
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


def _known_keys(schema: type[msgspec.Struct], path: str, tree: object) -> list[str]:
    """Returns the keys allowed at a msgspec path such as ``party[0]``.

    Args:
        schema: The file's.
        path: Where, from the top.
        tree: The file's values: which keys a table has may depend on one of them.
    """
    node: type[msgspec.Struct] = schema
    kinds: list[type[msgspec.Struct]] = [schema]
    for step in _STEP.finditer(path):
        if (index := step["index"]) is not None:
            tree = _inside(tree, int(index) if index.isdecimal() else index)
        else:
            tree = _inside(tree, step["key"])
            fields = msgspec.structs.fields(node)
            types = [it.type for it in fields if it.encode_name == step["key"]]
            kinds = [kind for annotation in types for kind in _structs_in(annotation)]
            if not kinds:
                return []
            node = kinds[0]
        # Of several kinds of table, the one that the table says it is.
        node = next((kind for kind in kinds if _is_called(kind, tree)), node)
    tag = node.__struct_config__.tag_field
    keys = [field.encode_name for field in msgspec.structs.fields(node)]
    return keys if tag is None else [tag, *keys]


def _inside(tree: object, key: str | int) -> object:
    if isinstance(tree, dict):
        return tree.get(key)
    if isinstance(tree, list) and isinstance(key, int) and key < len(tree):
        return tree[key]
    return None


def _is_called(kind: type[msgspec.Struct], table: object) -> bool:
    config = kind.__struct_config__
    return (
        config.tag_field is not None
        and isinstance(table, dict)
        and table.get(config.tag_field) == config.tag
    )


def _structs_in(annotation: object) -> list[type[msgspec.Struct]]:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return [annotation]
    arguments = getattr(annotation, "__args__", ())
    return [kind for argument in arguments for kind in _structs_in(argument)]
