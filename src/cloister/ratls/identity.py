"""A node's own keys: made in memory at start, never written, gone with the process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NewType

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from cloister.errors import VerificationError

Spki = NewType("Spki", bytes)  # DER SubjectPublicKeyInfo of a P-256 key

# A P-256 SubjectPublicKeyInfo with an uncompressed point is 91 bytes, always.
SPKI_BYTES = 91


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """The private keys of one running node.

    Attributes:
        tls_key: P-256; what the evidence binds and every connection uses.
        encryption_key: X25519; secrets are released to it.
    """

    tls_key: ec.EllipticCurvePrivateKey = field(repr=False)
    encryption_key: X25519PrivateKey = field(repr=False)

    @property
    def tls_spki(self) -> Spki:
        """The public TLS key."""
        return spki_of(self.tls_key.public_key())

    @property
    def encryption_public(self) -> bytes:
        """The public encryption key, 32 bytes."""
        return self.encryption_key.public_key().public_bytes_raw()

    def tls_key_pem(self) -> bytes:
        """Returns the private TLS key as gRPC wants it; for immediate use only."""
        return self.tls_key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )


def new_identity() -> NodeIdentity:
    """Returns fresh keys from the system's random source."""
    return NodeIdentity(
        tls_key=ec.generate_private_key(ec.SECP256R1()),
        encryption_key=X25519PrivateKey.generate(),
    )


def spki_of(key: ec.EllipticCurvePublicKey) -> Spki:
    """Returns the DER SubjectPublicKeyInfo of `key`."""
    return Spki(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def parse_spki(unverified_der: bytes) -> ec.EllipticCurvePublicKey:
    """Returns the P-256 key in `unverified_der`.

    Raises:
        VerificationError: If it is anything but a P-256 key in its one DER form.
    """
    try:
        key = load_der_public_key(unverified_der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _not_p256("bytes that are no key we know") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, ec.SECP256R1
    ):
        raise _not_p256("a key of another kind")
    # A second encoding of the same key would be a second name for one peer.
    if spki_of(key) != unverified_der:
        raise _not_p256("another encoding of the key")
    return key


def _not_p256(got: str) -> VerificationError:
    return VerificationError(
        "a TLS key is not acceptable",
        code="tls-key-invalid",
        expected="a P-256 key with an uncompressed point",
        got=got,
    )
