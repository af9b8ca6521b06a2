"""Party keys as the plan writes them: ``ed25519:`` and 64 hex digits."""

from __future__ import annotations

import re

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from cloister.errors import ConfigError

_KEY = re.compile(r"ed25519:[0-9a-f]{64}")

# Ed25519 as RFC 8032, 5.1 writes a point: y, little endian, and the sign of x on top.
_FIELD = 2**255 - 19
# One of the two y of the points of order 8; the other is its negative.
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# All points of order 1, 2, 4 and 8, whatever their x: a signature under such a key
# needs no secret.
_SMALL_ORDER = frozenset({0, 1, _FIELD - 1, _ORDER_8, _FIELD - _ORDER_8})


def parse_party_key(text: str) -> Ed25519PublicKey:
    """Returns the public key written as `text`.

    A key under which anybody can sign is none, and one key has one spelling: two
    parties with the same would count as two.

    Raises:
        ConfigError: If it is not ``ed25519:`` and 64 lower-case hex digits, or the key
            is a point of small order or not in its canonical form.
    """
    if not _KEY.fullmatch(text):
        raise ConfigError(
            "a party's key is malformed",
            code="party-key-invalid",
            expected="'ed25519:' and 64 lower-case hex digits",
            # Not the text: a private key put here by mistake is a secret.
            got=f"{len(text)} characters of another form",
            remedy="`cloister custodian init` makes a key and prints it.",
        )
    raw = bytes.fromhex(text.split(":")[1])
    # Both points with x = 0, of which the sign has a second spelling, are of small
    # order; so what is left to compare is y.
    y = int.from_bytes(raw, "little") % 2**255
    if y >= _FIELD or y in _SMALL_ORDER:
        raise ConfigError(
            "a party's key protects nothing",
            code="party-key-invalid",
            expected="the canonical form of an Ed25519 key that somebody made",
            got=f"{text}, "
            + ("a point of small order" if y < _FIELD else "not in canonical form"),
            remedy="`cloister custodian init` makes one and prints it.",
        )
    return Ed25519PublicKey.from_public_bytes(raw)


def format_party_key(key: Ed25519PrivateKey) -> str:
    """Returns the public half of `key` as the plan writes it."""
    return "ed25519:" + key.public_key().public_bytes_raw().hex()
