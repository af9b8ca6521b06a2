"""The rules of nodes that come for keys: the newest of each party, in force."""

from __future__ import annotations

from cloister.custody.register_rows import ForeignRow, WarrantRow
from cloister.custody.register_tables import Rows
from cloister.custody.register_warrants import (
    check_newest,
    check_same_encryption_key,
    other_plan,
)
from cloister.errors import VerificationError
from cloister.plan.plan import Plan, PlanHash, Role, plan_hash
from cloister.ratls.epochs import Epoch, EpochMemory, key_digest
from cloister.ratls.warrant import WarrantTerms


def note_foreign(
    rows: Rows, terms: WarrantTerms, *, encryption_key: bytes, at: int
) -> bool:
    """Remembers another party's node; returns whether it is a new one here.

    Args:
        rows: The register.
        terms: Of its warrant, verified.
        encryption_key: Of the node.
        at: Unix time.

    Raises:
        VerificationError: If a newer node of the party was seen here, or another of the
            same epoch.
    """
    known = _newest_foreign(rows, terms.run_id, terms.role, terms.party)
    if known is not None:
        _check_epoch(terms, known)
        if terms.epoch == known.epoch:
            check_same_encryption_key(
                known.encryption_key, encryption_key, epoch=known.epoch
            )
    new = known is None or known.epoch < terms.epoch
    row = ForeignRow(
        run_id=terms.run_id,
        role=terms.role,
        party=terms.party,
        epoch=terms.epoch,
        tls_key=terms.tls_key,
        encryption_key=encryption_key,
        plan_hash=PlanHash(terms.plan_hash),
        issued_at=terms.issued_at,
        expires_at=terms.expires_at,
    )
    if row != known:
        rows.put(row, instead_of=known, at=at)
    return new


def newest_node(
    rows: Rows, plan: Plan, *, party: str, tls_key: bytes
) -> WarrantRow | ForeignRow:
    """Returns the node of `tls_key`, if that is the newest of its party known here.

    Args:
        rows: The register.
        plan: The plan it trains under, consented to.
        party: The node's party, the custodian's own or another.
        tls_key: The node's TLS key.

    Raises:
        VerificationError: If a newer node took its place, it had no warrant, or that
            was under another plan.
    """
    if party == rows.head.party:
        return check_newest(rows, plan, party=party, tls_key=tls_key)
    return _check_newest_foreign(rows, plan, party=party, tls_key=tls_key)


def check_in_force(
    warrant: WarrantRow | ForeignRow | WarrantTerms, *, at: int, left: int = 1
) -> None:
    """Checks that a node's newest warrant is not over.

    Args:
        warrant: The warrant.
        at: Unix time of the record of what it is for: auditors judge by that.
        left: How many seconds it must still last.

    Raises:
        VerificationError: If it does not.
    """
    if at + left > warrant.expires_at:
        raise VerificationError(
            "the node's warrant is over, or almost",
            code="warrant-expired",
            expected=f"one that lasts until {at + left} (Unix time)",
            got=f"one that ends at {warrant.expires_at}",
            remedy="The node renews it at its custodian, then asks again.",
        )


def _check_newest_foreign(
    rows: Rows, plan: Plan, *, party: str, tls_key: bytes
) -> ForeignRow:
    role = plan.find_party(party).role
    known = _newest_foreign(rows, plan.run_id, role, party)
    if known is None or known.tls_key != tls_key:
        raise VerificationError(
            f"this node is not the newest one of {party!r}",
            code="warrant-superseded",
            expected="the node that last proved itself here"
            + (f", of epoch {known.epoch}" if known else "; there is none yet"),
            got="another TLS key",
            remedy="Let one node of the party run at a time.",
        )
    if known.plan_hash != plan_hash(plan):
        raise other_plan(known.plan_hash, plan_hash(plan))
    return known


def _newest_foreign(
    rows: Rows, run_id: str, role: Role, party: str
) -> ForeignRow | None:
    found = rows.foreign_warrants(
        "WHERE run_id = ? AND role = ? AND party = ?", run_id, role, party
    )
    return found[0] if found else None


def _check_epoch(terms: WarrantTerms, known: ForeignRow) -> None:
    seen = EpochMemory()
    seen.note(known.role, known.party, Epoch(known.epoch, key_digest(known.tls_key)))
    seen.check(terms.role, terms.party, Epoch(terms.epoch, key_digest(terms.tls_key)))
    if terms.epoch == known.epoch and terms.plan_hash != known.plan_hash:
        raise other_plan(known.plan_hash, terms.plan_hash)
