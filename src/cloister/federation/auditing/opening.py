"""What the first record of a run's log says: the plan, and whose it is.

Steps 2 and 3 of `audit_verification`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from cloister.errors import VerificationError
from cloister.federation.audit_records import RunOpened
from cloister.federation.auditing.report import Anchors, Moment, SignedTime
from cloister.plan.consent import parse_consent, verify_consents
from cloister.plan.plan import Plan, PlanHash, parse_plan, plan_hash
from cloister.ratls.warrant import instant
from cloister.storage.audit_chain import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the first record fixes for all that follow.

    Attributes:
        plan: The plan.
        plan_hash: Its hash.
        consented: When the last party signed it.
        keys_compared: Parties whose keys the auditor knew.
        plan_compared: Whether the auditor knew the plan's hash.
    """

    plan: Plan
    plan_hash: PlanHash
    consented: SignedTime
    keys_compared: tuple[str, ...]
    plan_compared: bool


def moment_of(link: Link) -> Moment:
    """Returns a record's place and time.

    Raises:
        ProtocolError: If the time lies outside any calendar.
    """
    whole = instant(link.at_ms // 1000)
    return Moment(
        record=link.seq, at=whole.replace(microsecond=link.at_ms % 1000 * 1000)
    )


def verify_opening(unverified: RunOpened, *, anchors: Anchors, at: datetime) -> Opening:
    """Returns what a log's first record fixes.

    Steps: (1) its plan parses; run and hash are that plan's; (2) every party of it
    consented, in the plan's order, with the key that the plan names, before `at`; (3)
    what the auditor knows is the same.

    Left to the caller: the signature of the server that opened the log. Without
    anchors, all of it may be one stranger's own invention.

    Args:
        unverified: The record.
        anchors: What the auditor knows.
        at: The record's time.

    Raises:
        VerificationError: If run or hash are not the plan's, or step 2 or 3 fails.
        ConfigError: If the plan does not parse.
        StorageError: If a consent is malformed.
    """
    # Step 1: the plan
    plan = parse_plan(unverified.plan)
    digest = plan_hash(plan)
    for what, expected, got in (
        ("run", plan.run_id, unverified.run_id),
        ("hash", digest.hex(), unverified.plan_hash.hex()),
    ):
        if got != expected:
            raise VerificationError(
                f"the record names another {what} than its plan has",
                code="audit-plan",
                expected=expected,
                got=got,
            )
    # Step 2: everybody's consent
    consented = _check_consents(unverified, plan, at=at)
    # Step 3: anchors
    return Opening(
        plan=plan,
        plan_hash=digest,
        consented=consented,
        keys_compared=_check_anchors(anchors, plan=plan, digest=digest),
        plan_compared=anchors.plan_hash is not None,
    )


def _check_consents(unverified: RunOpened, plan: Plan, *, at: datetime) -> SignedTime:
    """Returns when the last party signed."""
    if len(unverified.consents) != len(plan.party):
        raise VerificationError(
            "not every party consented to the plan, each once",
            code="audit-consents",
            expected=f"{len(plan.party)} consents",
            got=str(len(unverified.consents)),
        )
    newest, signer = 0, ""
    for consent in verify_consents(
        map(parse_consent, unverified.consents), plan=plan, at=at
    ):
        if consent.signed_at >= newest:
            newest, signer = consent.signed_at, consent.party
    return SignedTime(
        what=f"the consent of {signer!r}", at=datetime.fromtimestamp(newest, UTC)
    )


def _check_anchors(
    anchors: Anchors, *, plan: Plan, digest: PlanHash
) -> tuple[str, ...]:
    """Returns the parties whose keys the auditor knew."""
    known = anchors.plan_hash
    if known is not None and not secrets.compare_digest(known, digest):
        raise VerificationError(
            "the log is of another plan than the auditor's",
            code="audit-anchor",
            expected=known.hex(),
            got=digest.hex(),
            remedy="Whoever gave you the log shows you another run, or you compare it"
            " with another plan.",
        )
    parties = {party.name: party.key for party in plan.party}
    for name, key in anchors.party_keys.items():
        if parties.get(name) != key:
            raise VerificationError(
                f"the log's plan does not name the auditor's key for {name!r}",
                code="audit-anchor",
                expected=key,
                got=parties.get(name, "no such party"),
                remedy="Whoever gave you the log shows you another run, or you compare"
                " it with another key.",
            )
    if known is not None:
        return tuple(parties)
    return tuple(name for name in parties if name in anchors.party_keys)
