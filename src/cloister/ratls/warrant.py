"""Warrants: a party's signed word that one node is its own.

The plan lies on a host's disk, so genuine code started by a stranger under a party's
name would pass every other check. A warrant is signed with the party's key from the
plan and names the node's TLS key; it is void for any other key, role, plan or run. Its
epoch is the node's number among its party's: the same node renewed keeps it, the next
one has a higher one, and an older one is refused once a newer one was seen.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import cbor2
import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from msgspec import Meta

from cloister.errors import ProtocolError, VerificationError
from cloister.plan.plan import Name, Role, RunId
from cloister.ratls.certificate import CLOCK_TOLERANCE
from cloister.ratls.identity import SPKI_BYTES, Spki

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
        epoch: Rises with every new node of this run, role and party.
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


class HeldWarrant:
    """A node's own warrant: none at first, and renewed while the node runs."""

    def __init__(self, warrant: Warrant | None = None) -> None:
        self._warrant = warrant

    @property
    def current(self) -> Warrant:
        """The newest warrant.

        Raises:
            ProtocolError: If the party's custodian has given none.
        """
        if self._warrant is None:
            raise ProtocolError(
                "this node has no warrant",
                code="no-warrant",
                expected="a warrant of its party's custodian",
                remedy="Start the custodian, and let it be reached.",
            )
        return self._warrant

    def renew(self, warrant: Warrant) -> None:
        """Holds another warrant from now on; the caller verified it."""
        self._warrant = warrant


def instant(seconds: int) -> datetime:
    """Returns a time in a warrant or an admission as an aware one.

    Raises:
        ProtocolError: If it lies outside any calendar.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise ProtocolError(
            "a time lies outside any calendar",
            code="time-invalid",
            expected="Unix time",
            got=str(seconds),
        ) from error


def sign_warrant(terms: WarrantTerms, key: Ed25519PrivateKey) -> Warrant:
    """Returns `terms` signed with the party's key."""
    return Warrant(terms=terms, signature=key.sign(terms.signed_bytes()))


def wanted_terms(
    *, run_id: str, plan_hash: bytes, role: Role, party: str, tls_key: Spki
) -> WarrantTerms:
    """Returns terms to compare a warrant with; `verify_warrant` compares no others."""
    return WarrantTerms(
        run_id=run_id,
        plan_hash=plan_hash,
        role=role,
        party=party,
        tls_key=tls_key,
        epoch=1,
        issued_at=0,
        expires_at=0,
    )


def verify_warrant(
    unverified: Warrant, *, key: Ed25519PublicKey, wanted: WarrantTerms, at: datetime
) -> WarrantTerms:
    """Returns the terms of a warrant that holds.

    Steps: (1) the party signed it; (2) it is for this run, plan, role, party and TLS
    key; (3) it ends after it begins; (4) it is in force at `at`. The caller compares
    the epoch with those it saw.

    Args:
        unverified: The warrant as it came.
        key: The party's key from the plan.
        wanted: Terms to compare with; epoch and times in it are not compared.
        at: The verifier's time.

    Raises:
        VerificationError: If any step fails.
    """
    terms = unverified.terms
    whose = f"{wanted.role} {wanted.party!r}"
    # Step 1: who signed
    try:
        key.verify(unverified.signature, terms.signed_bytes())
    except InvalidSignature as error:
        raise VerificationError(
            "the warrant is not signed by its party",
            code="warrant-signature",
            expected=f"a signature by the key of {whose} in the plan",
            got="another one",
            remedy="Start the node where its party's custodian can be reached.",
        ) from error
    # Step 2: for whom and what
    for name in ("run_id", "plan_hash", "role", "party", "tls_key"):
        if getattr(terms, name) != getattr(wanted, name):
            raise VerificationError(
                f"the warrant is for another {name.replace('_', ' ')}",
                code="warrant-foreign",
                expected=f"{_show(getattr(wanted, name))}, for {whose}",
                got=_show(getattr(terms, name)),
            )
    # Step 3: some time. Within the tolerance of step 4 one could end before it begins.
    if terms.expires_at <= terms.issued_at:
        raise VerificationError(
            "the warrant ends before it begins",
            code="warrant-malformed",
            expected=f"one of {whose} that ends after {terms.issued_at} (Unix time)",
            got=str(terms.expires_at),
            remedy="Its party's custodian does not sign such; look at what does.",
        )
    # Step 4: in force
    tolerance = CLOCK_TOLERANCE / timedelta(seconds=1)
    if not terms.issued_at - tolerance <= at.timestamp() < terms.expires_at:
        raise VerificationError(
            "the warrant is not in force",
            code="warrant-expired",
            expected=f"one of {whose} for {terms.issued_at} to {terms.expires_at} (Unix"
            " time)",
            got=f"{at.timestamp():.0f}",
        )
    return terms


def _show(value: str | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else value
