"""Whose a data set's manifest is: the owner's signature over it, and its digest.

A DSSE envelope on one line (``docs/spec/sealed-data.md``). The digest stands in the
plan.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cloister.errors import StorageError
from cloister.storage.data_manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    malformed,
    parse_payload,
    payload_of,
)
from cloister.storage.dsse import Envelope, encode_envelope, pae, parse_envelope

PAYLOAD_TYPE: Final = "application/vnd.cloister.data.v1+json"


class ManifestSigner(Protocol):
    """The owner's key."""

    @property
    def owner(self) -> str:
        """Its public half, ``ed25519:`` and 64 hex digits."""
        ...

    def sign(self, message: bytes, /) -> bytes:
        """Returns an Ed25519 signature over `message`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedManifest:
    """A manifest whose signature holds, under the key that it names itself.

    Whose key that is says the plan: compare `digest` with what the plan pins.

    Attributes:
        manifest: What was signed.
        digest: ``sha256:`` and 64 hex digits over what is signed; the plan's ``data``.
    """

    manifest: Manifest
    digest: str


def sign_manifest(manifest: Manifest, *, signer: ManifestSigner) -> bytes:
    """Returns the signed manifest, one line of JSON without a newline.

    Raises:
        StorageError: If the schema is too large to be written (``data-too-large``).
        RuntimeError: If `signer` is not the manifest's owner; a bug of the caller.
    """
    if signer.owner != manifest.owner:
        raise RuntimeError("a manifest is signed by the owner that it names")
    payload = payload_of(manifest)
    return encode_envelope(
        Envelope(
            payload=payload,
            payload_type=PAYLOAD_TYPE,
            keyid=manifest.owner,
            signature=signer.sign(pae(payload, payload_type=PAYLOAD_TYPE)),
        )
    )


def verify_manifest(unverified: bytes) -> SignedManifest:
    """Returns the manifest on one line, if what it names as its owner signed it.

    1. It is one envelope of a manifest, spelled as `sign_manifest` does.
    2. The envelope names the owner's key.
    3. The signature over it is that key's.

    Left to the caller: whether that is the right owner, and the right data set.

    Raises:
        StorageError: If it is none (``data-malformed``), or its signature does not
            hold (``data-signature``).
    """
    # Step 1
    if len(unverified) > MAX_MANIFEST_BYTES:
        raise malformed(f"{len(unverified)} bytes")
    try:
        envelope = parse_envelope(unverified)
    except StorageError as error:
        raise malformed(error.got) from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise malformed(f"payload type {envelope.payload_type}")
    manifest = parse_payload(envelope.payload)
    # Step 2
    if envelope.keyid != manifest.owner:
        raise _forged("an envelope of another key")
    # Step 3
    key = Ed25519PublicKey.from_public_bytes(
        bytes.fromhex(manifest.owner.removeprefix("ed25519:"))
    )
    try:
        key.verify(envelope.signature, envelope.signed)
    except InvalidSignature as error:
        raise _forged("a signature that does not hold") from error
    digest = hashlib.sha256(envelope.signed).hexdigest()
    return SignedManifest(manifest=manifest, digest=f"sha256:{digest}")


def _forged(got: str) -> StorageError:
    return StorageError(
        "the data set's manifest is not signed by the owner that it names",
        code="data-signature",
        expected="the owner's signature",
        got=got,
        remedy="Copy the sealed data set again; if that does not help, do not use it.",
    )
