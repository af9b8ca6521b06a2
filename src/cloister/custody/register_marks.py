"""The rules of marks: what a run has reached, it does not go back behind."""

from __future__ import annotations

import dataclasses

from cloister.custody.register_rows import MarkRow, WarrantRow
from cloister.custody.register_tables import Rows
from cloister.errors import VerificationError
from cloister.ratls.epochs import Epoch, key_digest
from cloister.ratls.mark import Mark


def deposit_mark(rows: Rows, *, node: WarrantRow, mark: Mark, at: int) -> Mark:
    """Returns `mark`, written, if it goes on from the one known.

    Args:
        rows: The register.
        node: The party's newest node, which deposits it.
        mark: What it saw.
        at: Unix time.

    Raises:
        VerificationError: If it contradicts the mark that is known, or a server speaks
            of another one.
    """
    _check_own(mark, node)
    known = _newest_row(rows, node.run_id, node.party)
    if known is not None:
        _check_server(mark, known.mark)
        if not known.rewound:
            _check_onward(mark, known.mark)
    # The mark of the plan before, told once more, is that plan's still: its head lies
    # in the log of that one.
    again = known is not None and known.mark == mark
    row = MarkRow(
        run_id=node.run_id,
        role=node.role,
        party=node.party,
        plan_hash=known.plan_hash if known is not None and again else node.plan_hash,
        round=mark.round,
        state=mark.state,
        server_epoch=mark.server_epoch,
        server_key=mark.server_key,
        audit_head=mark.audit_head,
        rewound=0,
        at=at,
    )
    rows.put(row, instead_of=known, at=at)
    return mark


def mark_row(rows: Rows, run_id: str, party: str) -> MarkRow | None:
    """Returns the mark of a run, unless it was rewound."""
    row = _newest_row(rows, run_id, party)
    return None if row is None or row.rewound else row


def rewind_mark(rows: Rows, run_id: str, party: str) -> MarkRow | None:
    """Lets a run go back behind its mark; returns what no longer counts.

    Which server is the newest still counts: an operator who gives up a state does not
    call back a server that was replaced.
    """
    row = mark_row(rows, run_id, party)
    if row is not None:
        gone = dataclasses.replace(row, rewound=1)
        rows.put(gone, instead_of=row, at=rows.head.newest_at)
    return row


def _newest_row(rows: Rows, run_id: str, party: str) -> MarkRow | None:
    # A party has one role in a run, so one mark.
    found = rows.marks("WHERE run_id = ? AND party = ?", run_id, party)
    return found[0] if found else None


def _check_own(mark: Mark, node: WarrantRow) -> None:
    """A server's mark is of itself: its custodian knows its epoch and its key."""
    own = Epoch(node.epoch, key_digest(node.tls_key))
    named = Epoch(mark.server_epoch, mark.server_key)
    if node.role == "server" and named != own:
        raise _refusal(
            "a server deposits the mark of another one",
            code="mark-foreign",
            expected=f"epoch {own.number}, key {own.key.hex()}",
            got=f"epoch {named.number}, key {named.key.hex()}",
        )


def _check_server(mark: Mark, known: Mark) -> None:
    """Steps: (1) no older server; (2) no second one."""
    # Step 1: a server that another one took the place of
    if mark.server_epoch < known.server_epoch:
        raise _refusal(
            "the server was replaced by a newer one",
            code="server-epoch-old",
            expected=f"epoch {known.server_epoch} or later",
            got=f"epoch {mark.server_epoch}",
        )
    # Step 2: two servers at once
    same_epoch = mark.server_epoch == known.server_epoch
    if same_epoch and mark.server_key != known.server_key:
        raise _refusal(
            f"two servers have the epoch {mark.server_epoch}",
            code="server-forked",
            expected=f"the key with SHA-256 {known.server_key.hex()}",
            got=mark.server_key.hex(),
        )


def _check_onward(mark: Mark, known: Mark) -> None:
    """Steps: (3) no older round; (4) no fork.

    Not compared is the audit head: a server that starts again may write to it within a
    round.
    """
    # Step 3: the run was rolled back
    if mark.round < known.round:
        raise _refusal(
            "the run went back to an earlier round",
            code="mark-old",
            expected=f"round {known.round} or later",
            got=f"round {mark.round}",
        )
    # Step 4: the run went another way
    if mark.round == known.round and mark.state != known.state:
        raise _refusal(
            f"the run has two states of round {mark.round}",
            code="mark-forked",
            expected=known.state.hex(),
            got=mark.state.hex(),
        )


def _refusal(what: str, *, code: str, expected: str, got: str) -> VerificationError:
    return VerificationError(
        what,
        code=code,
        expected=expected,
        got=got,
        remedy="Start the server with the newest state. If that is lost, each party"
        " may let the run go back at its custodian.",
    )
