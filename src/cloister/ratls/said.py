"""A transcript as it is kept: in audit logs, where others read it later."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cloister.errors import VerificationError
from cloister.plan.plan import Name, PlanHash, Role, RunId
from cloister.ratls.identity import SPKI_BYTES, Spki, parse_spki
from cloister.ratls.transcript import FarRole, Nonce, Transcript

ENCRYPTION_KEY_BYTES = 32

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Key = Annotated[bytes, Meta(min_length=SPKI_BYTES, max_length=SPKI_BYTES)]


class Said(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A transcript as it is kept; `Transcript` says what each item is."""

    run_id: RunId
    plan_hash: Bytes32
    client_role: Role
    client_party: Name
    server_role: FarRole
    server_party: Name
    client_nonce: Bytes32
    server_nonce: Bytes32
    client_key: _Key
    server_key: _Key
    admission_key: Annotated[bytes, Meta(max_length=SPKI_BYTES)]
    client_encryption_key: Bytes32
    server_encryption_key: Annotated[bytes, Meta(max_length=ENCRYPTION_KEY_BYTES)]


def said(transcript: Transcript) -> Said:
    """Returns a transcript as it is kept."""
    return Said(
        run_id=transcript.run_id,
        plan_hash=transcript.plan_hash,
        client_role=transcript.client_role,
        client_party=transcript.client_party,
        server_role=transcript.server_role,
        server_party=transcript.server_party,
        client_nonce=transcript.client_nonce,
        server_nonce=transcript.server_nonce,
        client_key=transcript.client_key,
        server_key=transcript.server_key,
        admission_key=transcript.admission_key,
        client_encryption_key=transcript.client_encryption_key,
        server_encryption_key=transcript.server_encryption_key,
    )


def transcript_of(unverified: Said) -> Transcript:
    """Returns the transcript that was kept, if it is one that a meeting can have.

    Raises:
        VerificationError: If a key in it is none, or is there without need.
    """
    parse_spki(unverified.client_key)
    parse_spki(unverified.server_key)
    # A custodian has neither an admission CA nor an encryption key.
    if unverified.server_role == "server":
        parse_spki(unverified.admission_key)
    elif unverified.admission_key:
        raise _malformed("a custodian with an admission key")
    wanted = ENCRYPTION_KEY_BYTES if unverified.server_role == "server" else 0
    lengths = (
        (len(unverified.client_encryption_key), ENCRYPTION_KEY_BYTES),
        (len(unverified.server_encryption_key), wanted),
    )
    for got, expected in lengths:
        if got != expected:
            raise _malformed(f"an encryption key of {got} bytes, not {expected}")
    return Transcript(
        run_id=unverified.run_id,
        plan_hash=PlanHash(unverified.plan_hash),
        client_role=unverified.client_role,
        client_party=unverified.client_party,
        server_role=unverified.server_role,
        server_party=unverified.server_party,
        client_nonce=Nonce(unverified.client_nonce),
        server_nonce=Nonce(unverified.server_nonce),
        client_key=Spki(unverified.client_key),
        server_key=Spki(unverified.server_key),
        admission_key=unverified.admission_key,
        client_encryption_key=unverified.client_encryption_key,
        server_encryption_key=unverified.server_encryption_key,
    )


def _malformed(got: str) -> VerificationError:
    return VerificationError(
        "the testimony's transcript is none",
        code="testimony-malformed",
        expected="the keys of a node and of whom it met",
        got=got,
    )
