"""Warrants: a party's signed word that one node is its own.

The plan lies on a host's disk, so genuine code started by a stranger under a party's
name would pass every other check. A warrant is signed with the party's key from the
plan and names the node's TLS key; it is void for any other key, role, plan or run, and
an older epoch is refused once a newer one was seen.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

import cbor2
import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from msgspec import Meta

from cloister.errors import VerificationError
from cloister.plan.plan import Name, Role, RunId
from cloister.ratls.certificate import CLOCK_TOLERANCE
from cloister.ratls.identity import SPKI_BYTES

_LABEL = "cloister/warrant/1"
Seconds = Annotated[int, Meta(ge=0, le=2**53)]  # Unix time


class WarrantTerms(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """What a warrant grants, and to whom.

    Attributes:
        run_id: The run it is for.
        plan_hash: The plan the party consented to.
        role: The node's role.
        party: The party that signs.
        tls_key: SubjectPublicKeyInfo of the node's TLS key.
        epoch: Rises with every warrant for this run, role and party.
        issued_at: Unix time.
        expires_at: Unix time.
    """

    run_id: RunId
    plan_hash: Annotated[bytes, Meta(min_length=32, max_length=32)]
    role: Role
    party: Name
    tls_key: Annotated[bytes, Meta(min_length=SPKI_BYTES, max_length=SPKI_BYTES)]
    epoch: Annotated[int, Meta(ge=1, le=2**53)]
    issued_at: Seconds
    expires_at: Seconds

    def signed_bytes(self) -> bytes:
        """Returns the canonical bytes the party signs."""
        return cbor2.dumps([_LABEL, *msgspec.structs.astuple(self)], canonical=True)


class Warrant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Terms and the party's Ed25519 signature over them."""

    terms: WarrantTerms
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


def sign_warrant(terms: WarrantTerms, key: Ed25519PrivateKey) -> Warrant:
    """Returns `terms` signed with the party's key."""
    return Warrant(terms=terms, signature=key.sign(terms.signed_bytes()))


def verify_warrant(
    unverified: Warrant, *, key: Ed25519PublicKey, wanted: WarrantTerms, at: datetime
) -> WarrantTerms:
    """Returns the terms of a warrant that holds.

    Steps: (1) the party signed it; (2) it is for this run, plan, role, party and TLS
    key; (3) it is in force at `at`. The caller compares the epoch with those it saw.

    Args:
        unverified: The warrant as it came.
        key: The party's key from the plan.
        wanted: Terms to compare with; epoch and times in it are not compared.
        at: The verifier's time.

    Raises:
        VerificationError: If any step fails.
    """
    terms = unverified.terms
    # Step 1: who signed
    try:
        key.verify(unverified.signature, terms.signed_bytes())
    except InvalidSignature as error:
        raise VerificationError(
            f"the warrant of {wanted.role} {wanted.party!r} is not signed by its party",
            code="warrant-signature",
            expected="a signature by the party's key in the plan",
            got="another one",
            remedy="Start the node where its party's custodian can be reached.",
        ) from error
    # Step 2: for whom and what
    for name in ("run_id", "plan_hash", "role", "party", "tls_key"):
        if getattr(terms, name) != getattr(wanted, name):
            raise VerificationError(
                f"the warrant of {wanted.role} {wanted.party!r} is for another"
                f" {name.replace('_', ' ')}",
                code="warrant-foreign",
                expected=_show(getattr(wanted, name)),
                got=_show(getattr(terms, name)),
            )
    # Step 3: in force
    tolerance = CLOCK_TOLERANCE / timedelta(seconds=1)
    if not terms.issued_at - tolerance <= at.timestamp() < terms.expires_at:
        raise VerificationError(
            f"the warrant of {wanted.role} {wanted.party!r} is not in force",
            code="warrant-expired",
            expected=f"{terms.issued_at} to {terms.expires_at} (Unix time)",
            got=f"{at.timestamp():.0f}",
        )
    return terms


def _show(value: str | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else value
