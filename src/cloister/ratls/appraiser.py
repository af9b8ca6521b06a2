"""How a peer's quote is judged: one way, for nodes and for custodians."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from cloister.attestation.claims import Claims
from cloister.attestation.collateral_source import (
    CollateralSource,
    collateral_for_evidence,
)
from cloister.attestation.evidence import Evidence, parse_evidence
from cloister.attestation.policy import Policy, Verdict, appraise
from cloister.attestation.trust_root import TrustRoot
from cloister.attestation.verify import verify_evidence
from cloister.errors import VerificationError
from cloister.ratls.clock import FlooredClock


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraiser:
    """What is needed to judge a quote.

    Attributes:
        root: The trust root evidence must lead to.
        collateral: Where collateral for a peer's platform comes from; what it gives is
            verified each time.
        clock: The time; verified collateral says that it is not earlier.
    """

    root: TrustRoot
    collateral: CollateralSource
    clock: FlooredClock

    def appraise(
        self, unverified_quote: bytes, *, policy: Policy, expected_report_data: bytes
    ) -> Verdict:
        """Returns the verdict on a quote that was made for this very exchange.

        Raises:
            VerificationError: If it is not genuine, not bound as expected, or not
                what the policy wants.
        """
        claims = self.verify(
            unverified_quote, expected_report_data=expected_report_data
        )
        return appraise(claims, policy)

    def verify(self, unverified_quote: bytes, *, expected_report_data: bytes) -> Claims:
        """Returns what a genuine quote, bound as expected, says.

        Steps: (1) it was made for this; (2) as far as that needs no collateral, it is
        genuine; (3) with the collateral for its platform all of it is.

        Raises:
            VerificationError: If it is not genuine, or was made for something else.
            CloisterError: If the collateral for it cannot be had.
        """
        # Step 1. Before anything is looked up: quotes of others can be had anywhere.
        evidence = _made_for(unverified_quote, expected_report_data)
        at = self.clock()
        # Step 2 is the source's condition.
        collateral = collateral_for_evidence(
            evidence, source=self.collateral, root=self.root, at=at
        )
        # Step 3
        claims = verify_evidence(evidence, collateral=collateral, root=self.root, at=at)
        self.clock.raise_floor(claims.collateral_issued_at, source="collateral")
        return claims

    def fetch_collateral(
        self, unverified_quote: bytes, *, expected_report_data: bytes
    ) -> None:
        """Has the collateral for a peer's platform at hand, where it is fetched.

        May wait for a service, so it belongs in a thread; `appraise` finds the
        collateral in the source's cache then. Steps 1 and 2 of `verify` come first: a
        stranger must not have a service asked, and others wait, with a quote that
        anybody can have.

        Raises:
            CloisterError: If the quote is malformed, was made for something else, is
                by no genuine platform, or there is no collateral for it.
        """
        evidence = _made_for(unverified_quote, expected_report_data)
        collateral_for_evidence(
            evidence, source=self.collateral, root=self.root, at=self.clock()
        )


def _made_for(unverified_quote: bytes, expected_report_data: bytes) -> Evidence:
    evidence = parse_evidence(unverified_quote)
    got = evidence.report.report_data
    if not secrets.compare_digest(got, expected_report_data):
        raise VerificationError(
            "the evidence was made for something else",
            code="report-data",
            expected=expected_report_data.hex(),
            got=got.hex(),
            remedy="Replayed, reflected or diverted evidence looks like this.",
        )
    return evidence
