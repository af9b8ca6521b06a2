"""Keys of a party: what kinds there are, how each is named, and how one is carried.

A key is known by its `key_id`, which stands in the plan. So the plan says which key a
node is to get, and a node finds a wrong one out. What this module does not do: keep
keys, or decide who gets them; that is custody's.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Literal, NoReturn, Protocol

import cbor2
from typing_extensions import override

KEY_BYTES = 32

# data: of a party's sealed records. state-share: a party's share of the keys that seal
# a node's state. vault: an age identity, which opens a sealed model.
KeyKind = Literal["data", "state-share", "vault"]

_LABEL = "cloister/key-id/1"


class Secret:
    """Bytes that show themselves nowhere: in no repr, no log, no pickle.

    Python cannot wipe memory: they stay in it until it is used again.

    Args:
        value: The bytes.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Returns the bytes; for immediate use only."""
        return self._value

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return secrets.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # no dictionary is to find one by value

    @override
    def __repr__(self) -> str:
        return "Secret(...)"

    @override
    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not copied out of its process")


class KeySource(Protocol):
    """Where what is sealed on disk gets its key from."""

    def key(self, kind: KeyKind) -> Secret:
        """Returns the one key of this kind that the node has.

        Raises:
            ConfigError: If it has none.
        """
        ...


def key_id(kind: KeyKind, key: Secret) -> str:
    """Returns the public name of a key, ``sha256:`` and 64 hex digits.

    A hash of 32 random bytes, so it says nothing of them. A vault key is named by its
    age recipient instead, which is as public.
    """
    form = cbor2.dumps([_LABEL, kind, key.reveal()], canonical=True)
    return f"sha256:{hashlib.sha256(form).hexdigest()}"


def new_key() -> Secret:
    """Returns a fresh key of `KEY_BYTES` random bytes."""
    return Secret(secrets.token_bytes(KEY_BYTES))
