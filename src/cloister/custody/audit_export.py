"""A custodian's records as its party shows them: signed, one on a line."""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.custody.register import Register
from cloister.errors import ConfigError
from cloister.plan.keys import format_party_key
from cloister.ratls.signed_head import (
    HEAD_TYPE,
    SignedHead,
    encode_head,
    head_from_mark,
)
from cloister.storage.audit_chain import sign_payload
from cloister.storage.dsse import Envelope, encode_envelope, pae


class PartySigner:
    """Signs with a party's key; a `storage.audit_chain.Signer`.

    Args:
        key: The party's key.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._keyid = format_party_key(key)

    @property
    def keyid(self) -> str:
        """The key as plans write it."""
        return self._keyid

    def sign(self, message: bytes, /) -> bytes:
        """Returns an Ed25519 signature over `message`."""
        return self._key.sign(message)


def export_audit(register: Register, *, key: Ed25519PrivateKey) -> Iterator[bytes]:
    """Yields the lines of the register's audit, newlines and all.

    Each time the same bytes, for Ed25519 signs alike; a later export goes on from an
    earlier one.

    Raises:
        ConfigError: If nothing was recorded yet.
        StorageError: If the register cannot be read.
    """
    signer, found = PartySigner(key), False
    for row in register.records():
        found = True
        yield encode_envelope(sign_payload(row.payload, signer=signer)) + b"\n"
    if not found:
        raise ConfigError(
            "this custodian has recorded nothing yet",
            code="audit-empty",
            expected="a custodian that consented to a plan, or keeps a key",
        )


def sign_head(head: SignedHead, *, key: Ed25519PrivateKey) -> bytes:
    """Returns the party's statement on a run's audit log, one line."""
    signer, payload = PartySigner(key), encode_head(head)
    envelope = Envelope(
        payload=payload,
        payload_type=HEAD_TYPE,
        keyid=signer.keyid,
        signature=signer.sign(pae(payload, payload_type=HEAD_TYPE)),
    )
    return encode_envelope(envelope) + b"\n"


def head_of_run(register: Register, run_id: str) -> SignedHead:
    """Returns what the register can say of a run's audit log.

    Raises:
        ConfigError: If no mark of the run with a head is in it.
    """
    row = register.known_mark(run_id)
    if row is None:
        raise ConfigError(
            f"this custodian has no mark of the run {run_id!r}",
            code="mark-missing",
            expected="a run in which the party's node deposited one",
            remedy="See: cloister custodian status DIR.",
        )
    return head_from_mark(
        row.mark,
        run_id=run_id,
        plan_hash=row.plan_hash,
        party=register.party,
        at=row.at,
    )
