"""What one running node is: its plan, its keys, and how it judges a peer."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cloister.attestation.collateral_source import (
    CollateralSource,
    collateral_for_evidence,
)
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.platforms import Platform
from cloister.attestation.policy import Policy, Verdict, appraise
from cloister.attestation.trust_root import TrustRoot
from cloister.attestation.verify import verify_evidence
from cloister.errors import VerificationError
from cloister.plan.keys import parse_party_key
from cloister.plan.plan import Plan, PlanHash, Role
from cloister.ratls.identity import NodeIdentity, Spki
from cloister.ratls.warrant import Warrant, WarrantTerms, verify_warrant

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What one running node is and knows.

    Attributes:
        plan: The plan it works under.
        plan_hash: Its hash.
        role: The node's role.
        party: The node's party.
        identity: Its keys.
        platform: Where its evidence comes from.
        warrant: Its party's warrant for its TLS key.
        root: The trust root evidence must lead to.
        collateral: Where collateral for a peer's platform comes from; what it gives is
            verified each time.
        clock: The node's time, aware, UTC.
    """

    plan: Plan
    plan_hash: PlanHash
    role: Role
    party: str
    identity: NodeIdentity
    platform: Platform
    warrant: Warrant
    root: TrustRoot
    collateral: CollateralSource
    clock: Clock

    def appraise(
        self, unverified_quote: bytes, *, role: Role, expected_report_data: bytes
    ) -> Verdict:
        """Returns the verdict on a peer's quote under the plan's policy for `role`.

        Raises:
            VerificationError: If it is not genuine, not bound as expected, or not
                what the policy wants.
        """
        return _appraise(
            unverified_quote,
            root=self.root,
            collateral=self.collateral,
            policy=self.plan.policy_for(role),
            expected_report_data=expected_report_data,
            at=self.clock(),
        )

    def fetch_collateral(self, unverified_quote: bytes) -> None:
        """Has the collateral for a peer's platform at hand, where it is fetched.

        May wait for a service, so it belongs in a thread; `appraise` finds the
        collateral in the source's cache then.

        Raises:
            CloisterError: If the quote is malformed or there is no collateral for it.
        """
        evidence = parse_evidence(unverified_quote)
        collateral_for_evidence(
            evidence, source=self.collateral, root=self.root, at=self.clock()
        )

    def check_warrant(
        self, unverified: Warrant, *, role: Role, party: str, tls_key: Spki
    ) -> WarrantTerms:
        """Returns the terms of a peer's warrant that holds under this plan.

        Raises:
            VerificationError: If it does not.
        """
        wanted = WarrantTerms(
            run_id=self.plan.run_id,
            plan_hash=self.plan_hash,
            role=role,
            party=party,
            tls_key=tls_key,
            epoch=1,
            issued_at=0,
            expires_at=0,
        )
        key = parse_party_key(self.plan.find_party(party).key)
        return verify_warrant(unverified, key=key, wanted=wanted, at=self.clock())


def _appraise(
    unverified_quote: bytes,
    *,
    root: TrustRoot,
    collateral: CollateralSource,
    policy: Policy,
    expected_report_data: bytes,
    at: datetime,
) -> Verdict:
    evidence = parse_evidence(unverified_quote)
    claims = verify_evidence(
        evidence,
        collateral=collateral_for_evidence(
            evidence, source=collateral, root=root, at=at
        ),
        root=root,
        at=at,
    )
    if not secrets.compare_digest(claims.report_data, expected_report_data):
        raise VerificationError(
            "the evidence was made for something else",
            code="report-data",
            expected=expected_report_data.hex(),
            got=claims.report_data.hex(),
            remedy="Replayed, reflected or diverted evidence looks like this.",
        )
    return appraise(claims, policy)
