"""Checks a run's audit log offline: who wrote it, what it proves, and what it does not.

Follows `docs/spec/audit.md`. No network, no clock, no state; nothing is believed that
is not signed, attested, or compared with what the auditor brings. The steps, in one
pass:

 1. Chain: every line is a record; numbers, hashes and times follow each other.
 2. Plan: the first record holds it, its hash, and every party's signed consent.
 3. Anchors: what the auditor knows of plan and keys is the same.
 4. Servers: each one's warrant, rising epoch, and evidence over its keys and the head
    before; every record is signed by the server in force.
 5. Admissions: each testimony names this server's keys, and proves again what the plan
    asks for, at the record's time with the recorded collateral; epochs never fall.
 6. Refusals: signature and form, and that the plan has the party. What was refused is
    not judged again: that may be just what nobody can read.
 7. Rounds: one after the other, after a restart from the state introduced; just those
    took part whom the plan lets be all, each one admitted, and countersigned the head
    that went out with the model. The rule is the plan's alone: all workers; the cohort
    that its seed draws; or, with a number as quorum, so many at least.
 8. Seal: after the last round, to the plan's recipients, the reports of all workers, or
    of as many as the quorum at least, countersigned.
 9. Heads: what custodians signed lies in the log at its place; else cut or forked.
10. Time: records are judged at their own time, which is the server's host's clock. From
    below it is bounded by what others signed (consents, warrants, collateral), from
    above by custodians' statements alone. Both are in the report, not judged.

What holds each record against whoever owns the host's disk: the chain and the server's
signature fix its content, place and time; the server's own evidence fixes everything
before its introduction. A host can leave records away at the end (step 9), and can show
the work of one server or of another (epochs, step 9). It cannot make a record.

What nothing pins but the server's signature, so that it is worth what the attested code
is: reasons of refusals, withdrawals and failures; the digest of the sealed file; the
state a run begins with and those that no custodian's head names; and that the server
was told of all that happened: what a host keeps from it is in no log. So with a number
as quorum nothing says why a worker is missing from a round: it came late, had no seat,
or its messages were held back.

What an attacker with a custodian's disk can do: warrant other nodes of that one party,
which must prove the plan's code all the same (unless the plan admits the party by its
key), and sign heads that are in no log. Then an honest log is called cut or forked; who
says so is named, and is bound by the signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cloister.errors import CloisterError, StorageError, VerificationError
from cloister.federation.audit_records import AnyEntry, RunOpened, parse_entry
from cloister.federation.auditing.heads import Heads
from cloister.federation.auditing.opening import (
    Opening,
    moment_of,
    verify_opening,
)
from cloister.federation.auditing.report import Anchors, AuditReport
from cloister.federation.auditing.run import AuditedRun
from cloister.storage.audit_chain import Link
from cloister.storage.dsse import Envelope

# What is wrong with a chain whose lines are all well formed: it does not hold.
_BROKEN = frozenset({"audit-broken", "audit-order"})


def verify_audit(
    unverified: Iterable[Link], *, anchors: Anchors, heads: Sequence[Envelope] = ()
) -> AuditReport:
    """Returns what a run's log proves, if all of it holds; the steps are above.

    Args:
        unverified: The log's records as `storage.audit_chain.parse_links` yields them,
            which does step 1.
        anchors: What the auditor knows from elsewhere.
        heads: Custodians' statements, in their envelopes.

    Raises:
        VerificationError: If any step fails; its code begins with ``audit-``. It names
            the line, unless it is a custodian's statement that does not fit.
        StorageError: If a line is no record of a run, or a statement none of a
            custodian.
    """
    run: AuditedRun | None = None
    for link in _chained(unverified):
        entry = _parsed(link)
        if run is None:
            opening = _opened(link, entry, anchors)
            run = AuditedRun(opening, Heads(heads, opening=opening))
        try:
            run.take(link, entry)
        except CloisterError as error:
            raise _refused(error, link) from error
    if run is None:
        raise StorageError(
            "the log is empty", code="audit-empty", expected="a run's records"
        )
    try:
        return run.finish()
    except CloisterError as error:
        raise _refused(error, None) from error


def _opened(link: Link, entry: AnyEntry, anchors: Anchors) -> Opening:
    if not isinstance(entry, RunOpened):
        raise VerificationError(
            "the log does not begin with the opening of a run",
            code="audit-opening",
            expected="run-opened in line 1",
            got=type(entry).__name__,
        )
    try:
        return verify_opening(entry, anchors=anchors, at=moment_of(link).at)
    except CloisterError as error:
        raise _refused(error, link) from error


def _parsed(link: Link) -> AnyEntry:
    try:
        return parse_entry(link.entry)
    except StorageError as error:
        raise StorageError(
            f"line {link.seq + 1} of the log holds no record of a run",
            code=error.code,
            expected=error.expected,
            got=error.got,
        ) from error


def _chained(unverified: Iterable[Link]) -> Iterator[Link]:
    """Step 1: tells a chain that was tampered with from a file that is none."""
    try:
        yield from unverified
    except StorageError as error:
        if error.code not in _BROKEN:
            raise
        raise VerificationError(
            error.what,
            code=error.code,
            expected=error.expected,
            got=error.got,
            remedy=error.remedy,
        ) from error


def _refused(error: CloisterError, link: Link | None) -> VerificationError:
    """Returns the error for a record that is well formed and does not hold."""
    where = "" if link is None else f"line {link.seq + 1} of the log does not hold: "
    code = error.code if error.code.startswith("audit-") else f"audit-{error.code}"
    return VerificationError(
        f"{where}{error.what}",
        code=code,
        expected=error.expected,
        got=error.got,
        remedy=error.remedy,
        step=error.step if isinstance(error, VerificationError) else None,
    )
