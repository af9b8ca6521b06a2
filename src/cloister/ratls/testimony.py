"""What a node showed at a meeting, kept whole, so that others can judge it later.

A testimony holds all that the verdict rested on: what both sides said, the warrant, the
evidence or the signature, and which collateral was used. Whoever has it, that
collateral and the plan comes to the same verdict, without a network.

The node's signature of possession (message 4) is not kept: evidence, and likewise the
party's signature, covers the whole transcript, the TLS key in it included. So nobody
but the node chose that key, whoever held it at that moment.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from cloister.attestation.collateral import Collateral
from cloister.attestation.policy import Verdict
from cloister.attestation.trust_root import TrustRoot
from cloister.errors import VerificationError
from cloister.plan.keys import parse_party_key
from cloister.plan.plan import Party, Plan, PlanHash
from cloister.ratls.appraiser import judge_with
from cloister.ratls.challenge import ClientProof, EvidenceProof, IdentityProof
from cloister.ratls.proofs import Standing, verify_client_proof
from cloister.ratls.said import Bytes32, Said, said, transcript_of
from cloister.ratls.transcript import Transcript
from cloister.ratls.warrant import Warrant, verify_warrant, wanted_terms

__all__ = [
    "Bytes32",
    "Hex32",
    "Said",
    "Shown",
    "Testimony",
    "collateral_sha256",
    "said",
    "shown",
    "transcript_of",
    "verify_testimony",
]

Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Testimony(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one node showed, and with what it was judged.

    Attributes:
        said: The transcript.
        warrant: The node's warrant; None at its own custodian, who is about to sign it.
        proof: Evidence, or the party's signature; None from a node that was refused
            before it gave any.
        collateral: SHA-256 (hex) of the collateral, in the JSON shape that DCAP tools
            exchange; None where the proof is no evidence, or was refused without any.
    """

    said: Said
    warrant: Warrant | None
    proof: EvidenceProof | IdentityProof | None
    collateral: Hex32 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A testimony with the collateral that it names.

    Attributes:
        testimony: What the node showed.
        collateral: In the JSON shape that DCAP tools exchange; None where it names
            none.
    """

    testimony: Testimony
    collateral: str | None


def shown(
    transcript: Transcript,
    *,
    warrant: Warrant | None,
    proof: ClientProof | None,
    collateral: Collateral | None,
) -> Shown:
    """Returns what a node showed, to be kept.

    Args:
        transcript: What both sides said.
        warrant: See `Testimony`.
        proof: See `Testimony`.
        collateral: What the proof was judged with, if with any.
    """
    text = None if collateral is None else collateral.to_json()
    return Shown(
        testimony=Testimony(
            said=said(transcript),
            warrant=warrant,
            proof=proof,
            collateral=None if text is None else collateral_sha256(text),
        ),
        collateral=text,
    )


def collateral_sha256(text: str) -> str:
    """Returns the name of collateral in the JSON shape of DCAP tools: its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()


def verify_testimony(
    unverified: Testimony,
    *,
    plan: Plan,
    plan_hash: PlanHash,
    collateral: Collateral | None,
    root: TrustRoot,
    at: datetime,
) -> Standing:
    """Returns what the node proved itself to be, as whoever met it had to find.

    Steps:

    1. it is of this run and plan, and both sides are whom the plan lets meet;
    2. the transcript is one that a meeting can have;
    3. the node's warrant is its party's, for its TLS key, and in force; only its own
       custodian needs none, who is about to sign it;
    4. there is a proof, with the collateral that the testimony names and no other;
    5. the proof is of the kind that the plan asks of the party;
    6. evidence was made for this transcript, is genuine with that collateral and what
       the plan asks of the party; or the signature is the party's.

    Left to the caller: that the far side's keys are those of who recorded it, all of
    them, for evidence does not cover `said.server_encryption_key`; that epochs rise;
    and that `at` is the time of the meeting.

    Args:
        unverified: The testimony.
        plan: The plan.
        plan_hash: Its hash.
        collateral: What `unverified.collateral` names.
        root: The trust root of the plan's policies.
        at: The time of the meeting, aware.

    Raises:
        VerificationError: If any step fails.
    """
    if at.tzinfo is None:
        raise ValueError("at must be aware of its time zone")
    words = unverified.said
    # Step 1: whose meeting
    party = _check_sides(words, plan=plan, plan_hash=plan_hash)
    # Step 2: the transcript
    transcript = transcript_of(words)
    # Step 3: the warrant
    _check_warrant(unverified.warrant, transcript, party=party, at=at)
    # Step 4: proof and collateral
    proof = unverified.proof
    if proof is None:
        raise VerificationError(
            "the testimony holds no proof",
            code="testimony-proof",
            expected=f"what the node of {party.name!r} proved itself with",
            got="nothing",
        )
    _check_collateral(unverified, collateral)

    def appraise(quote: bytes, bound: bytes) -> Verdict:
        if collateral is None:
            raise _collateral_differs("none", "some that evidence was judged with")
        return judge_with(
            quote,
            collateral=collateral,
            policy=plan.policy_of(party.name),
            expected_report_data=bound,
            root=root,
            at=at,
        )

    # Steps 5 and 6
    return verify_client_proof(
        proof, party=party, transcript=transcript, appraise=appraise
    )


def _check_sides(words: Said, *, plan: Plan, plan_hash: PlanHash) -> Party:
    for name, expected, got in (
        ("plan", plan_hash.hex(), words.plan_hash.hex()),
        ("run", plan.run_id, words.run_id),
    ):
        if expected != got:
            raise _foreign(f"another {name}", expected=expected, got=got)
    client, far = (
        next((party for party in plan.party if party.name == name), None)
        for name in (words.client_party, words.server_party)
    )
    if client is None or client.role != words.client_role:
        raise _foreign(
            "no party of the plan",
            expected="a party in its role",
            got=f"{words.client_role} {words.client_party}",
        )
    # Nobody but workers meets the server; all meet their custodian, and those that have
    # a state key the custodians that hold shares of it.
    if words.server_role == "server":
        meets = client.role == "worker" and far == plan.server
    else:
        holds_share = far is not None and far.state_share is not None
        meets = far == client or (client.has_state and holds_share)
    if not meets:
        raise _foreign(
            "two that do not meet",
            expected=f"whom the {client.role} of {client.name!r} meets by the plan",
            got=f"{words.server_role} of {words.server_party!r}",
        )
    return client


def _check_warrant(
    unverified: Warrant | None, transcript: Transcript, *, party: Party, at: datetime
) -> None:
    own = transcript.server_role == "custodian"
    if unverified is None:
        if own and transcript.server_party == party.name:
            return
        raise VerificationError(
            "the testimony holds no warrant",
            code="testimony-warrant",
            expected=f"one of {party.name!r} for the node's TLS key",
            got="nothing",
        )
    wanted = wanted_terms(
        run_id=transcript.run_id,
        plan_hash=transcript.plan_hash,
        role=transcript.client_role,
        party=transcript.client_party,
        tls_key=transcript.client_key,
    )
    verify_warrant(unverified, key=parse_party_key(party.key), wanted=wanted, at=at)


def _check_collateral(unverified: Testimony, collateral: Collateral | None) -> None:
    named = unverified.collateral or "none"
    given = "none" if collateral is None else collateral_sha256(collateral.to_json())
    # A signature is judged without any: then none may be named.
    if given != named:
        raise _collateral_differs(given, named)


def _collateral_differs(got: str, expected: str) -> VerificationError:
    return VerificationError(
        "the testimony is not judged with the collateral that it names",
        code="testimony-collateral",
        expected=expected,
        got=got,
    )


def _foreign(what: str, *, expected: str, got: str) -> VerificationError:
    return VerificationError(
        f"the testimony is of {what}",
        code="testimony-foreign",
        expected=expected,
        got=got,
    )
