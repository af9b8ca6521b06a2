"""The rules of consents: one run has one plan at a time, and one history of plans."""

from __future__ import annotations

import dataclasses

from cloister.custody.audit_records import ConsentGiven, ConsentWithdrawn
from cloister.custody.register_errors import damaged
from cloister.custody.register_marks import mark_row
from cloister.custody.register_records import write_record
from cloister.custody.register_rows import PlanRow
from cloister.custody.register_tables import Rows
from cloister.errors import CloisterError, ConfigError, VerificationError
from cloister.plan.amendment import check_successor
from cloister.plan.consent import (
    Consent,
    format_consent,
    parse_consent,
    verify_consent,
)
from cloister.plan.digest import digest_bytes, format_digest
from cloister.plan.plan import Plan, PlanHash, parse_plan, plan_hash
from cloister.ratls.warrant import instant


def adopt_plan(
    rows: Rows, plan: Plan, *, text: bytes, consent: Consent, at: int
) -> None:
    """Makes `plan` the newest of its run.

    The newest plan of a run is the only one that is not superseded. It is active or
    withdrawn; a withdrawn one is succeeded like an active one, or withdrawing would be
    a way to start the same run again with another plan.

    Args:
        rows: The register.
        plan: The plan.
        text: Its TOML text.
        consent: The party's consent, verified.
        at: Unix time.

    Raises:
        ConfigError: If the run is another plan's.
        VerificationError: If the plan does not succeed the newest one.
    """
    row = PlanRow(
        plan_hash=plan_hash(plan),
        run_id=plan.run_id,
        plan=text,
        consent=format_consent(consent),
        state="active",
        at=at,
    )
    newest, superseded = _newest_of_run(rows, plan.run_id), None
    if newest is not None and newest.plan_hash != row.plan_hash:
        superseded = newest.plan_hash
        if rows.warrants("WHERE run_id = ? LIMIT 1", plan.run_id):
            _check_succession(rows, newest, plan, party=consent.party)
        gone = dataclasses.replace(newest, state="superseded", at=at)
        rows.put(gone, instead_of=newest, at=at)
    known = row_of_plan(rows, row.plan_hash)
    if known is None or known.state != "active":
        rows.put(row, instead_of=known, at=at)
        given = ConsentGiven(
            run_id=row.run_id,
            plan_hash=row.plan_hash,
            plan=text,
            consent=row.consent,
            supersedes=superseded,
        )
        write_record(rows, given, subject=row.run_id, at=at)


def withdraw_plan(rows: Rows, digest: PlanHash, *, at: int) -> None:
    """Ends the consent to a plan.

    Raises:
        ConfigError: If there is none, or another plan of the run is in its place.
    """
    row = row_of_plan(rows, digest)
    if row is None:
        raise ConfigError(
            "there is no consent to this plan to withdraw",
            code="plan-not-consented",
            expected="a plan that this custodian signed",
            got=digest.hex(),
        )
    if row.state == "superseded":
        raise ConfigError(
            "another plan of its run took the place of this one",
            code="plan-superseded",
            expected="the newest plan of the run",
            got=digest.hex(),
            remedy="Withdraw that one.",
        )
    if row.state == "active":
        gone = dataclasses.replace(row, state="withdrawn", at=at)
        rows.put(gone, instead_of=row, at=at)
        withdrawn = ConsentWithdrawn(run_id=row.run_id, plan_hash=digest)
        write_record(rows, withdrawn, subject=row.run_id, at=at)


class ConsentedPlans:
    """The plans in force, each parsed and verified once for every row it has had.

    A stranger's hello names a plan, and all other nodes wait while it is looked up.

    Args:
        party: Whose consents they are.
    """

    def __init__(self, *, party: str) -> None:
        self._party = party
        # By one row for a plan, so there are never more of them than rows.
        self._verified: dict[PlanHash, tuple[PlanRow, Plan]] = {}

    def plan(self, rows: Rows, digest: PlanHash) -> Plan:
        """Returns a plan the party consents to; `rows` are those of now.

        Raises:
            StorageError: If the text is not the plan's, or the consent does not hold.
            VerificationError: If the party never consented to it, or no longer does.
        """
        row = _row_in_force(rows, digest)
        known = self._verified.get(digest)
        # All of the row: what was verified is its text and its consent.
        if known is not None and known[0] == row:
            return known[1]
        plan = _plan_in(rows, row, party=self._party)
        self._verified[digest] = (row, plan)
        return plan


def _row_in_force(rows: Rows, digest: PlanHash) -> PlanRow:
    row = row_of_plan(rows, digest)
    if row is None:
        raise VerificationError(
            "the party did not consent to this plan",
            code="plan-not-consented",
            expected="a plan that its custodian signed",
            got=digest.hex(),
            remedy="Sign it with: cloister plan sign PLAN.",
        )
    if row.state != "active":
        raise VerificationError(
            f"the party's consent to this plan is {row.state}",
            code=f"plan-{row.state}",
            expected="a plan in force",
            got=digest.hex(),
            remedy="Start the node with the plan that is in force."
            if row.state == "superseded"
            else "Sign it again with: cloister plan sign PLAN.",
        )
    return row


def row_of_plan(rows: Rows, digest: PlanHash) -> PlanRow | None:
    """Returns what is known of a plan."""
    found = rows.plans("WHERE plan_hash = ?", digest)
    return found[0] if found else None


def _newest_of_run(rows: Rows, run_id: str) -> PlanRow | None:
    found = rows.plans("WHERE run_id = ? AND state <> 'superseded'", run_id)
    return found[0] if found else None


def _plan_in(rows: Rows, row: PlanRow, *, party: str) -> Plan:
    try:
        plan = parse_plan(row.plan)
        if plan_hash(plan) != row.plan_hash or plan.run_id != row.run_id:
            raise damaged("a plan that is not the one it is filed under")
        # It was not signed in the future when it came, so not after what came later.
        newest = instant(rows.head.newest_at)
        consent = parse_consent(row.consent)
        verify_consent(consent, plan=plan, party=party, at=newest)
    except CloisterError as error:
        # Whatever is wrong with it: it was right when it was written.
        raise damaged(error.what) from error
    return plan


def _check_succession(rows: Rows, newest: PlanRow, plan: Plan, *, party: str) -> None:
    if plan.predecessor is None:
        raise ConfigError(
            f"the run {plan.run_id!r} is another plan's, and training began under it",
            code="run-taken",
            expected=f"a successor of {format_digest(newest.plan_hash)}",
            got="a plan without [predecessor]",
            remedy="Give the plan another [plan] run, or write a successor with:"
            " cloister plan amend PLAN --custodian DIR.",
        )
    check_successor(_plan_in(rows, newest, party=party), plan)
    known = mark_row(rows, plan.run_id, party)
    if known is None:
        return  # nothing was deposited here, so nothing can be compared
    named = plan.predecessor
    # Marks of two custodians may lie some rounds apart, so a later one than ours is
    # good: the others, who signed it, may have seen more.
    behind = named.round < known.round
    forked = named.round == known.round and digest_bytes(named.state) != known.state
    if behind or forked:
        raise VerificationError(
            "the amendment goes on from another state than this custodian knows",
            code="amendment-state",
            expected=f"round {known.round}, {format_digest(known.state)}, or later",
            got=f"round {named.round}, {named.state}",
            remedy="Write it again with: cloister plan amend PLAN --custodian DIR.",
        )
