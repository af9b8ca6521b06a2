"""What one running node is: its plan, its keys, and how it judges a peer."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.attestation.platforms import Platform
from cloister.attestation.policy import Verdict
from cloister.plan.keys import parse_party_key
from cloister.plan.plan import Plan, PlanHash, Role
from cloister.ratls.appraiser import Appraiser
from cloister.ratls.clock import FlooredClock
from cloister.ratls.epochs import EpochMemory
from cloister.ratls.identity import NodeIdentity, Spki
from cloister.ratls.proofs import EvidenceProver, Prover
from cloister.ratls.warrant import (
    HeldWarrant,
    Warrant,
    WarrantTerms,
    verify_warrant,
    wanted_terms,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What one running node is and knows.

    Attributes:
        plan: The plan it works under.
        plan_hash: Its hash.
        role: The node's role.
        party: The node's party.
        identity: Its keys.
        prover: How it shows what or whose it is.
        appraiser: How it judges a peer's evidence.
        warrant: Its party's word for its TLS key; renewed while it runs.
        epochs: The newest node it met of each role and party.
        clock: The host's time, which it lets fall behind no signed time it verified.
    """

    plan: Plan
    plan_hash: PlanHash
    role: Role
    party: str
    identity: NodeIdentity
    prover: Prover
    appraiser: Appraiser
    warrant: HeldWarrant
    epochs: EpochMemory
    clock: FlooredClock

    @property
    def platform(self) -> Platform:
        """The platform of an attested node; a bug of the caller for any other."""
        if not isinstance(self.prover, EvidenceProver):
            raise TypeError("a node admitted by identity has no platform")
        return self.prover.platform

    def appraise(
        self, unverified_quote: bytes, *, party: str, expected_report_data: bytes
    ) -> Verdict:
        """Returns the verdict on the quote of a party's node, by what the plan asks.

        Args:
            unverified_quote: The quote.
            party: Whose node the peer is to be.
            expected_report_data: What it must be bound to, 64 bytes.

        Raises:
            VerificationError: If it is not genuine, not bound as expected, or not
                what the policy wants.
            ConfigError: If the plan asks no evidence of the party.
        """
        return self.appraiser.appraise(
            unverified_quote,
            policy=self.plan.policy_of(party),
            expected_report_data=expected_report_data,
        )

    def check_warrant(
        self, unverified: Warrant, *, role: Role, party: str, tls_key: Spki
    ) -> WarrantTerms:
        """Returns the terms of a peer's warrant that holds under this plan.

        Raises:
            VerificationError: If it does not hold.
        """
        wanted = wanted_terms(
            run_id=self.plan.run_id,
            plan_hash=self.plan_hash,
            role=role,
            party=party,
            tls_key=tls_key,
        )
        key = parse_party_key(self.plan.find_party(party).key)
        # Its time raises no floor: a party could push this node's clock ahead with it.
        return verify_warrant(unverified, key=key, wanted=wanted, at=self.clock())
