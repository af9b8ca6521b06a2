"""How a peer's quote is judged: one way, for nodes and for custodians."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from cloister.attestation.claims import Claims
from cloister.attestation.collateral import Collateral
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
class Judged:
    """A verdict, and what it takes to come to the same one later.

    Attributes:
        verdict: The verdict; its claims say for what time.
        collateral: What it was judged with.
    """

    verdict: Verdict
    collateral: Collateral


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
        return self.judge(
            unverified_quote, policy=policy, expected_report_data=expected_report_data
        ).verdict

    def judge(
        self, unverified_quote: bytes, *, policy: Policy, expected_report_data: bytes
    ) -> Judged:
        """Returns the verdict like `appraise`, with the collateral it rests on.

        Who must name the collateral of a refusal, too, or asks more than one policy,
        calls `fetch_collateral`, `verify_with` and the policies one by one.

        Raises:
            VerificationError: If it is not genuine, not bound as expected, or not
                what the policy wants.
            CloisterError: If the collateral for it cannot be had.
        """
        collateral = self.fetch_collateral(
            unverified_quote, expected_report_data=expected_report_data
        )
        claims = self.verify_with(
            unverified_quote,
            collateral=collateral,
            expected_report_data=expected_report_data,
        )
        return Judged(verdict=appraise(claims, policy), collateral=collateral)

    def verify(self, unverified_quote: bytes, *, expected_report_data: bytes) -> Claims:
        """Returns what a genuine quote, bound as expected, says.

        Steps: (1) it was made for this; (2) as far as that needs no collateral, it is
        genuine; (3) with the collateral for its platform all of it is.

        Raises:
            VerificationError: If it is not genuine, or was made for something else.
            CloisterError: If the collateral for it cannot be had.
        """
        # Steps 1 and 2
        collateral = self.fetch_collateral(
            unverified_quote, expected_report_data=expected_report_data
        )
        # Step 3
        return self.verify_with(
            unverified_quote,
            collateral=collateral,
            expected_report_data=expected_report_data,
        )

    def verify_with(
        self,
        unverified_quote: bytes,
        *,
        collateral: Collateral,
        expected_report_data: bytes,
    ) -> Claims:
        """Returns what a genuine quote says, found with collateral that is at hand.

        Raises:
            VerificationError: If it is not genuine, or was made for something else.
        """
        claims = verify_evidence(
            made_for(unverified_quote, expected_report_data),
            collateral=collateral,
            root=self.root,
            at=self.clock(),
        )
        self.clock.raise_floor(claims.collateral_issued_at, source="collateral")
        return claims

    def fetch_collateral(
        self, unverified_quote: bytes, *, expected_report_data: bytes
    ) -> Collateral:
        """Returns the collateral for a peer's platform, fetched where need be.

        May wait for a service, so it belongs in a thread; `appraise` finds the
        collateral in the source's cache then. Steps 1 and 2 of `verify` come first: a
        stranger must not have a service asked, and others wait, with a quote that
        anybody can have.

        Raises:
            CloisterError: If the quote is malformed, was made for something else, is
                by no genuine platform, or there is no collateral for it.
        """
        # Step 1. Before anything is looked up: quotes of others can be had anywhere.
        evidence = made_for(unverified_quote, expected_report_data)
        # Step 2 is the source's condition.
        return collateral_for_evidence(
            evidence, source=self.collateral, root=self.root, at=self.clock()
        )


def judge_with(
    unverified_quote: bytes,
    *,
    collateral: Collateral,
    policy: Policy,
    expected_report_data: bytes,
    root: TrustRoot,
    at: datetime,
) -> Verdict:
    """Returns the verdict on a quote for any time, with collateral that was kept.

    Steps: (1) it was made for this; (2) it was genuine at `at`; (3) it is what the
    policy wants.

    Raises:
        VerificationError: If any step fails.
    """
    evidence = made_for(unverified_quote, expected_report_data)
    claims = verify_evidence(evidence, collateral=collateral, root=root, at=at)
    return appraise(claims, policy)


def made_for(unverified_quote: bytes, expected_report_data: bytes) -> Evidence:
    """Returns a quote, parsed, that was made for this; it is not verified yet.

    Raises:
        VerificationError: If it is no quote, or carries other report data.
    """
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
