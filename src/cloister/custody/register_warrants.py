"""The rules of epochs: one for each node process of a party, never used twice."""

from __future__ import annotations

from cloister.custody.register_rows import WarrantRow
from cloister.custody.register_tables import Rows
from cloister.errors import ProtocolError, VerificationError
from cloister.plan.plan import Plan, Role, plan_hash
from cloister.ratls.identity import SPKI_BYTES, Spki
from cloister.ratls.said import Said
from cloister.ratls.warrant import WarrantTerms

_OF_NODES = "WHERE run_id = ? AND role = ? AND party = ?"


def grant_warrant(
    rows: Rows, plan: Plan, said: Said, *, at: int, seconds: int
) -> tuple[WarrantRow, bool]:
    """Returns the warrant of a node, written, and whether it has the next epoch.

    Else the same key is renewed.

    A former key is refused for ever. So of two processes that both run, only the one
    that came last goes on, and a clone of an older one is found out. One epoch is one
    process, so its encryption key stays the same too.

    Args:
        rows: The register.
        plan: A plan the party consents to.
        said: What the node said.
        at: Unix time.
        seconds: How long the warrant lasts.

    Raises:
        ProtocolError: If the key is none.
        VerificationError: If the key had an earlier epoch, is another plan's, or has
            another encryption key than before.
    """
    tls_key = Spki(said.client_key)
    if len(tls_key) != SPKI_BYTES:
        raise ProtocolError(
            "the node's TLS key has the wrong size",
            code="tls-key-size",
            expected=f"{SPKI_BYTES} bytes",
            got=str(len(tls_key)),
        )
    party = rows.head.party
    role = plan.find_party(party).role
    newest = _newest(rows, plan.run_id, role, party)
    renewed = newest is not None and newest.tls_key == tls_key
    if newest is not None and renewed:
        _check_same_plan(newest, plan)
        check_same_encryption_key(
            newest.encryption_key, said.client_encryption_key, epoch=newest.epoch
        )
    else:
        _check_unused(rows, plan.run_id, role, party, tls_key, newest)
    last = newest.epoch if newest is not None else 0
    row = WarrantRow(
        run_id=plan.run_id,
        role=role,
        party=party,
        epoch=last if renewed else last + 1,
        tls_key=tls_key,
        encryption_key=said.client_encryption_key,
        plan_hash=plan_hash(plan),
        issued_at=at,
        expires_at=at + seconds,
    )
    rows.put(row, instead_of=newest if renewed else None, at=at)
    return row, not renewed


def terms_in(row: WarrantRow) -> WarrantTerms:
    """Returns the terms of the warrant in a row."""
    names = WarrantTerms.__struct_fields__
    return WarrantTerms(**{name: getattr(row, name) for name in names})


def check_newest(rows: Rows, plan: Plan, *, party: str, tls_key: bytes) -> WarrantRow:
    """Returns the warrant of `tls_key`, if that is the party's newest node.

    Raises:
        VerificationError: If a newer node took its place, it never had a warrant, or
            that was under another plan.
    """
    newest = _newest(rows, plan.run_id, plan.find_party(party).role, party)
    if newest is None or newest.tls_key != tls_key:
        raise _superseded(newest)
    _check_same_plan(newest, plan)
    return newest


def _newest(rows: Rows, run_id: str, role: Role, party: str) -> WarrantRow | None:
    found = rows.warrants(
        f"{_OF_NODES} ORDER BY epoch DESC LIMIT 1", run_id, role, party
    )
    return found[0] if found else None


def _check_unused(
    rows: Rows,
    run_id: str,
    role: Role,
    party: str,
    tls_key: Spki,
    newest: WarrantRow | None,
) -> None:
    if rows.warrants(f"{_OF_NODES} AND tls_key = ?", run_id, role, party, tls_key):
        raise _superseded(newest)


def _check_same_plan(newest: WarrantRow, plan: Plan) -> None:
    # A node reads its plan once; its evidence names that one as long as it runs.
    if newest.plan_hash != plan_hash(plan):
        raise other_plan(newest.plan_hash, plan_hash(plan))


def check_same_encryption_key(known: bytes, got: bytes, *, epoch: int) -> None:
    """Checks that a node of an epoch is the process that it was.

    Both of its keys were made when it started, and leave it no more. With another one
    beside the same TLS key, a record of a release would not say to whom it went.

    Raises:
        VerificationError: If it is not.
    """
    if got != known:
        raise VerificationError(
            "this node has another encryption key than before",
            code="encryption-key-differs",
            expected=f"{known.hex()}, as in epoch {epoch}",
            got=got.hex(),
            remedy="Start the node again; a new process makes both of its keys anew.",
        )


def other_plan(first: bytes, second: bytes) -> VerificationError:
    """Returns the error for a node that changed its plan without a new process."""
    return VerificationError(
        "this node's warrant was under another plan",
        code="warrant-other-plan",
        expected=first.hex(),
        got=second.hex(),
        remedy="Start the node again, with the plan it is to train under.",
    )


def _superseded(newest: WarrantRow | None) -> VerificationError:
    return VerificationError(
        "this node is not the party's newest one of this run",
        code="warrant-superseded",
        expected="the node that last got a warrant"
        + (f", of epoch {newest.epoch}" if newest else "; there is none yet"),
        got="another TLS key",
        remedy="Let one node of the party run at a time; a new one starts anew.",
    )
