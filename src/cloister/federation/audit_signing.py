"""Who signs a run's audit log: the server, with its TLS key."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from typing_extensions import override

from cloister.errors import VerificationError
from cloister.ratls.identity import NodeIdentity, Spki, parse_spki
from cloister.storage.audit_chain import Link, Signer


def keyid_of(key: Spki) -> str:
    """Returns the name of a TLS key in envelopes: its SHA-256 in hex."""
    return hashlib.sha256(key).hexdigest()


class ServerSigner(Signer):
    """Signs with a server's TLS key, ECDSA with SHA-256, DER.

    Args:
        identity: The server's keys.
    """

    def __init__(self, identity: NodeIdentity) -> None:
        self._identity = identity
        self._keyid = keyid_of(identity.tls_spki)

    @property
    @override
    def keyid(self) -> str:
        return self._keyid

    @override
    def sign(self, message: bytes, /) -> bytes:
        return self._identity.tls_key.sign(message, ec.ECDSA(hashes.SHA256()))


def verify_link(unverified: Link, *, key: Spki) -> Link:
    """Returns a record that the server with this TLS key wrote.

    Raises:
        VerificationError: If it did not.
    """
    envelope = unverified.envelope
    # The keyid is under no signature, and must name no other key all the same.
    if envelope.keyid != keyid_of(key):
        raise _not_signed(unverified, key)
    try:
        parse_spki(key).verify(
            envelope.signature, envelope.signed, ec.ECDSA(hashes.SHA256())
        )
    except InvalidSignature as error:
        raise _not_signed(unverified, key) from error
    return unverified


def _not_signed(link: Link, key: Spki) -> VerificationError:
    return VerificationError(
        f"record {link.seq} of the log is not signed by the server in force",
        code="audit-signature",
        expected=f"a signature by the key {keyid_of(key)}",
        got=f"one that says to be by {link.envelope.keyid}",
    )
