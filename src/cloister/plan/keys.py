"""Party keys as the plan writes them: ``ed25519:`` and 64 hex digits."""

from __future__ import annotations

import re

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from cloister.errors import ConfigError

_KEY = re.compile(r"ed25519:[0-9a-f]{64}")


def parse_party_key(text: str) -> Ed25519PublicKey:
    """Returns the public key written as `text`.

    Raises:
        ConfigError: If it is not ``ed25519:`` and 64 lower-case hex digits.
    """
    if not _KEY.fullmatch(text):
        raise ConfigError(
            "a party's key is malformed",
            code="party-key-invalid",
            expected="'ed25519:' and 64 lower-case hex digits",
            got=repr(text[:80]),
        )
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text.split(":")[1]))


def format_party_key(key: Ed25519PrivateKey) -> str:
    """Returns the public half of `key` as the plan writes it."""
    return "ed25519:" + key.public_key().public_bytes_raw().hex()
