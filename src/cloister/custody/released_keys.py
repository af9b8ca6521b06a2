"""Released keys on their way: sealed to one node, in one session, and to nobody else.

One message of HPKE (RFC 9180, base mode: X25519, HKDF-SHA256, AES-256-GCM) to the
encryption key that the node's proof names. Its info is all of the session's transcript
and the node's epoch, so what was released opens in no other session, at no other node
of the same code, under no other plan, and for no other custodian.

Base mode does not show who sealed: the session does, and `check_key`, for the plan
names every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import cbor2
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cloister.errors import CloisterError, VerificationError
from cloister.ratls.identity import NodeIdentity
from cloister.ratls.transcript import Transcript
from cloister.storage.age import recipient_of
from cloister.storage.keys import KEY_BYTES, KeyKind, Secret, key_id

# Three keys of some ten bytes' name and at most 74 bytes each, and what HPKE adds.
MAX_SEALED_BYTES: Final = 1024

_LABEL = "cloister/released-keys/1"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decoder = msgspec.msgpack.Decoder(dict[KeyKind, bytes])


def seal_keys(
    keys: Mapping[KeyKind, Secret], *, transcript: Transcript, epoch: int
) -> bytes:
    """Returns keys that only the transcript's client can open, in this session.

    No nonce to choose: HPKE makes a fresh key for every message.

    Args:
        keys: What to release.
        transcript: What both sides of the session said.
        epoch: The epoch of the client's warrant.

    Raises:
        VerificationError: If nothing can be sealed to the client's encryption key.
    """
    opened = _encode({kind: key.reveal() for kind, key in keys.items()})
    try:
        to = X25519PublicKey.from_public_bytes(transcript.client_encryption_key)
        return _SUITE.encrypt(opened, to, info=_info(transcript, epoch))
    except ValueError:
        # Of small order: what is sealed to such a key, anybody can open.
        pass
    raise VerificationError(
        "the node's encryption key is none",
        code="released-keys",
        expected="an X25519 key, 32 bytes, of the whole group",
        got=transcript.client_encryption_key.hex(),
    )


def open_keys(
    sealed: bytes, *, identity: NodeIdentity, transcript: Transcript, epoch: int
) -> dict[KeyKind, Secret]:
    """Returns the keys that were released to this node in this session.

    Left to the caller: that they are the keys that the plan names (`check_key`).

    Args:
        sealed: What the custodian sent.
        identity: The node's keys.
        transcript: What both sides of the session said.
        epoch: The epoch of the node's warrant.

    Raises:
        VerificationError: If it was made for another session, or is altered.
    """
    try:
        info = _info(transcript, epoch)
        opened = _SUITE.decrypt(sealed, identity.encryption_key, info=info)
        released = _decoder.decode(opened)
        if _encode(released) == opened:
            return {kind: Secret(value) for kind, value in released.items()}
    except (InvalidTag, ValueError, msgspec.DecodeError, UnicodeError):
        # Not chained: what a decoder says of keys may quote them.
        pass
    raise VerificationError(
        "what the custodian released does not open",
        code="released-keys",
        expected="keys sealed to this node in this very session",
        got=f"{len(sealed)} bytes of something else",
        remedy="Replayed, diverted or altered keys look like this.",
    )


def check_key(kind: KeyKind, key: Secret, *, name: str, custodian: str) -> Secret:
    """Returns a key that is the one the plan names.

    Args:
        kind: What it is to be.
        key: What came.
        name: Its name in the plan.
        custodian: Whose custodian gave it.

    Raises:
        VerificationError: If it is another key (``key-differs``).
    """
    if _name_of(kind, key) == name:
        return key
    raise VerificationError(
        f"the custodian of {custodian!r} gave another key than the plan names",
        code="key-differs",
        expected=f"the {kind} key {name}",
        got="another one",
        remedy=f"The custodian of {custodian!r} must keep the key that the plan names.",
    )


def _name_of(kind: KeyKind, key: Secret) -> str:
    """Returns what a plan would call a key; nothing if it cannot be of its kind."""
    if kind != "vault":
        return key_id(kind, key) if len(key.reveal()) == KEY_BYTES else ""
    try:
        return recipient_of(key.reveal().decode("ascii"))
    except (CloisterError, UnicodeError):
        return ""


def _info(transcript: Transcript, epoch: int) -> bytes:
    it = transcript
    return cbor2.dumps(
        [
            _LABEL,
            it.run_id,
            it.plan_hash,
            it.client_role,
            it.client_party,
            it.server_role,
            it.server_party,
            it.client_nonce,
            it.server_nonce,
            it.client_key,
            it.server_key,
            it.admission_key,
            it.client_encryption_key,
            it.server_encryption_key,
            epoch,
        ],
        canonical=True,
    )
