"""Keys as they come: made here, or brought in a file; and how each is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cloister.errors import ConfigError
from cloister.storage.age import new_identity, read_identity, recipient_of
from cloister.storage.keys import KEY_BYTES, KeyKind, Secret, key_id, new_key

_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HEX: Final = re.compile(rb"[0-9a-fA-F]{64}\s*")
# More than either form of a key, so that a longer file is seen to be one.
_READ_BYTES: Final = 256


def make_key(kind: KeyKind) -> Secret:
    """Returns a fresh key; for a vault key, the text of a fresh age identity."""
    return Secret(new_identity()[0].encode()) if kind == "vault" else new_key()


def name_of(kind: KeyKind, secret: Secret) -> str:
    """Returns how plans name a key.

    Raises:
        ConfigError: If it is no key of this kind.
    """
    if kind == "vault":
        return recipient_of(secret.reveal().decode("ascii", errors="replace"))
    if len(secret.reveal()) != KEY_BYTES:
        raise _no_key(kind)
    return key_id(kind, secret)


def read_key(path: Path, *, kind: KeyKind) -> Secret:
    """Returns a key that its owner has in a file.

    Args:
        path: For a vault key a file as `age-keygen` writes it; for any other 32 bytes,
            or 64 hex digits.
        kind: What it is for.

    Raises:
        ConfigError: If the file cannot be read, or holds something else.
    """
    if kind == "vault":
        return Secret(read_identity(path).encode())
    try:
        with path.open("rb") as file:
            content = file.read(_READ_BYTES)
    except OSError as error:
        raise ConfigError(
            f"cannot read the key in {path}",
            code="key-unreadable",
            expected=f"a file with a {kind} key",
            got=error.strerror or "an error",
        ) from error
    if _HEX.fullmatch(content):
        return Secret(bytes.fromhex(content.decode()))
    if len(content) != KEY_BYTES:
        raise _no_key(kind)
    return Secret(content)


def check_label(label: str) -> str:
    """Returns a key's label, if it can be one.

    Raises:
        ConfigError: If it cannot.
    """
    if not _LABEL.fullmatch(label):
        raise ConfigError(
            "a key's label is malformed",
            code="key-label-invalid",
            expected="1 to 64 lower-case letters, digits, dots, dashes or underscores",
            got=repr(label[:80]),
        )
    return label


def _no_key(kind: KeyKind) -> ConfigError:
    # What was read is not shown: it may be a key with a byte too many.
    return ConfigError(
        f"this is no {kind} key",
        code="key-invalid",
        expected=f"{KEY_BYTES} bytes, or {2 * KEY_BYTES} hex digits",
    )
