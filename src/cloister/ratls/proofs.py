"""How a client shows who it is at the end of a challenge: evidence, or its party's key.

Which of the two counts is the plan's decision for each party, never the client's. The
server of a run and a party's own custodian ask in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.attestation.platforms import Platform
from cloister.attestation.policy import Verdict
from cloister.errors import VerificationError
from cloister.plan.keys import parse_party_key
from cloister.plan.parties import Admit
from cloister.plan.plan import Party
from cloister.ratls.challenge import ClientProof, EvidenceProof, IdentityProof
from cloister.ratls.identity import NodeIdentity, parse_spki
from cloister.ratls.transcript import Transcript


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceProver:
    """A node inside a TEE: it proves what it runs.

    Attributes:
        platform: Where its quotes come from.
    """

    platform: Platform

    def prove(self, transcript: Transcript) -> EvidenceProof:
        """Returns fresh evidence bound to the transcript.

        Raises:
            PlatformError: If the machine cannot quote.
        """
        return EvidenceProof(quote=self.platform.quote(transcript.client_report_data()))


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityProver:
    """A node outside any TEE, at its party's own site: it proves whose it is.

    Attributes:
        key: The party's key.
    """

    key: Ed25519PrivateKey = field(repr=False)

    def prove(self, transcript: Transcript) -> IdentityProof:
        """Returns the party's signature over the transcript."""
        return IdentityProof(signature=self.key.sign(transcript.identity_bytes()))


Prover = EvidenceProver | IdentityProver


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """A peer that showed its party's key and no evidence: nothing says what it runs.

    Attributes:
        party_key: The key, as the plan writes it.
    """

    party_key: str


Standing = Verdict | Identified
# From a quote and the report data it must carry to the verdict on it.
AppraiseQuote = Callable[[bytes, bytes], Verdict]

_KINDS: dict[Admit, str] = {"attested": "evidence", "identity": "a party's signature"}


def sign_possession(identity: NodeIdentity, transcript: Transcript) -> bytes:
    """Returns the TLS key's signature over the transcript, ECDSA with SHA-256, DER."""
    return identity.tls_key.sign(
        transcript.possession_bytes(), ec.ECDSA(hashes.SHA256())
    )


def verify_possession(unverified_signature: bytes, transcript: Transcript) -> None:
    """Checks that the client holds the TLS key that it named, here and now.

    Raises:
        VerificationError: If the signature is not that key's over this transcript.
    """
    key = parse_spki(transcript.client_key)
    try:
        key.verify(
            unverified_signature,
            transcript.possession_bytes(),
            ec.ECDSA(hashes.SHA256()),
        )
    except InvalidSignature as error:
        raise VerificationError(
            "the client does not hold its TLS key",
            code="transcript-signature",
            expected="a signature over this transcript by the key in the hello of"
            f" {transcript.client_party!r}",
            got="another one",
        ) from error


def check_proof_kind(unverified: ClientProof, *, party: Party) -> None:
    """Checks that a proof is of the kind that the plan asks of this party.

    Raises:
        VerificationError: If it is of the other.
    """
    if isinstance(unverified, EvidenceProof) != (party.admit == "attested"):
        raise VerificationError(
            "the client proves itself in another way than the plan asks for",
            code="proof-kind",
            expected=f"{_KINDS[party.admit]} of {party.name!r}",
            got=_KINDS["attested" if party.admit == "identity" else "identity"],
        )


def verify_client_proof(
    unverified: ClientProof,
    *,
    party: Party,
    transcript: Transcript,
    appraise: AppraiseQuote,
) -> Standing:
    """Returns what the client proved itself to be.

    Steps: (1) the proof is of the kind that the plan asks of this party; (2) evidence
    is genuine, made for this transcript and what the policy wants, or the signature is
    the party's.

    Raises:
        VerificationError: If either step fails.
    """
    # Step 1: of the kind that the plan asks for
    check_proof_kind(unverified, party=party)
    # Step 2: the proof itself
    if isinstance(unverified, EvidenceProof):
        return appraise(unverified.quote, transcript.client_report_data())
    try:
        parse_party_key(party.key).verify(
            unverified.signature, transcript.identity_bytes()
        )
    except InvalidSignature as error:
        raise VerificationError(
            "the client does not hold its party's key",
            code="identity-signature",
            expected=f"a signature over this transcript by the key of {party.name!r}"
            " in the plan",
            got="another one",
        ) from error
    return Identified(party_key=party.key)
