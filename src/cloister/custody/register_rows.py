"""The rows of a custodian's database, each read and written whole.

Every row carries a SHA-256 of its own values, and one head row carries the exclusive-or
of all of these. So a row that a disk changed, lost or doubled is found. None of this is
a signature: who may write the file can also make these hashes anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import cbor2

from cloister.custody.register_errors import damaged
from cloister.plan.plan import PlanHash, Role
from cloister.ratls.mark import Mark

_LABEL = "cloister/register-row/1"
_NO_ROWS = bytes(32)

PlanState: TypeAlias = Literal["active", "withdrawn", "superseded"]
Value: TypeAlias = str | int | bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """A plan this party consented to, and what became of that.

    Attributes:
        plan_hash: The plan.
        run_id: Its run.
        plan: The plan's TOML text, as it was signed.
        consent: The party's consent, as its file holds it.
        state: Whether nodes still get warrants under it.
        at: Unix time of the newest change.
    """

    table: ClassVar[str] = "consents"
    plan_hash: PlanHash
    run_id: str
    plan: bytes = dataclasses.field(repr=False)
    consent: bytes = dataclasses.field(repr=False)
    state: PlanState
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WarrantRow:
    """The newest warrant of one epoch: of one node process.

    Attributes:
        run_id: The run.
        role: The role of the node.
        party: The party, always this custodian's.
        epoch: Counts the node processes of this run, role and party, from 1.
        tls_key: SubjectPublicKeyInfo of the node's TLS key.
        plan_hash: The plan it trains under.
        issued_at: Unix time.
        expires_at: Unix time.
    """

    table: ClassVar[str] = "warrants"
    run_id: str
    role: Role
    party: str
    epoch: int
    tls_key: bytes
    plan_hash: PlanHash
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkRow:
    """How far a run had come when a node last said so.

    Attributes:
        run_id: The run.
        role: The role of the node that deposited it.
        party: The party, always this custodian's.
        round: See `Mark`.
        state: See `Mark`.
        server_epoch: See `Mark`.
        server_key: See `Mark`.
        audit_head: See `Mark`.
        rewound: 1 after an operator let the run go back: then round, state and audit
            head count no more, and which server is the newest still does. Else 0.
        at: Unix time of the deposit.
    """

    table: ClassVar[str] = "marks"
    run_id: str
    role: Role
    party: str
    round: int
    state: bytes
    server_epoch: int
    server_key: bytes
    audit_head: bytes | None
    rewound: int
    at: int

    @property
    def mark(self) -> Mark:
        """The row as the mark it holds."""
        return Mark(
            round=self.round,
            state=self.state,
            server_epoch=self.server_epoch,
            server_key=self.server_key,
            audit_head=self.audit_head,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The one row about the database itself.

    Attributes:
        party: Whose custodian keeps it.
        changes: Counts transactions that changed something.
        newest_at: The greatest time, in Unix seconds, that was ever written.
        rows: Exclusive-or of the hashes of all other rows.
    """

    table: ClassVar[str] = "register"
    party: str
    changes: int
    newest_at: int
    rows: bytes


Row: TypeAlias = PlanRow | WarrantRow | MarkRow
AnyRow = TypeVar("AnyRow", PlanRow, WarrantRow, MarkRow)
Stored = TypeVar("Stored", PlanRow, WarrantRow, MarkRow, Head)

_READ: dict[type[Row], str] = {
    PlanRow: "SELECT * FROM consents",
    WarrantRow: "SELECT * FROM warrants",
    MarkRow: "SELECT * FROM marks",
}
_WRITE: dict[type[Row], str] = {
    PlanRow: """
        INSERT INTO consents VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (plan_hash) DO UPDATE SET
            run_id = excluded.run_id, plan = excluded.plan,
            consent = excluded.consent, state = excluded.state,
            at = excluded.at, row_hash = excluded.row_hash""",
    WarrantRow: """
        INSERT INTO warrants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (run_id, role, party, epoch) DO UPDATE SET
            tls_key = excluded.tls_key, plan_hash = excluded.plan_hash,
            issued_at = excluded.issued_at, expires_at = excluded.expires_at,
            row_hash = excluded.row_hash""",
    MarkRow: """
        INSERT INTO marks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (run_id, role, party) DO UPDATE SET
            round = excluded.round, state = excluded.state,
            server_epoch = excluded.server_epoch, server_key = excluded.server_key,
            audit_head = excluded.audit_head, rewound = excluded.rewound,
            at = excluded.at,
            row_hash = excluded.row_hash""",
}


class Rows:
    """What one transaction sees and changes; made by `RegisterFile.transaction` alone.

    Args:
        connection: Inside a transaction that holds the write lock.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        found = connection.execute("SELECT * FROM register WHERE id = 1").fetchall()
        if len(found) != 1:
            raise damaged("it lost the row about itself")
        self._stored = self.head = _checked(Head, found[0][1:])

    def plans(self, where: str = "", *values: Value) -> tuple[PlanRow, ...]:
        """Returns consents, checked; `where` is a constant clause of SQL."""
        return self._read(PlanRow, where, values)

    def warrants(self, where: str = "", *values: Value) -> tuple[WarrantRow, ...]:
        """Returns warrants, checked; `where` is a constant clause of SQL."""
        return self._read(WarrantRow, where, values)

    def marks(self, where: str = "", *values: Value) -> tuple[MarkRow, ...]:
        """Returns marks, checked; `where` is a constant clause of SQL."""
        return self._read(MarkRow, where, values)

    def put(self, row: Row, *, instead_of: Row | None, at: int) -> None:
        """Writes a row.

        Args:
            row: The row.
            instead_of: The row that has its primary key now, or None for none.
            at: The time of the change, Unix seconds.
        """
        values = (*_values(row), row_hash(row))
        self._connection.execute(_WRITE[type(row)], values)
        self._note(row, instead_of, at=at)

    def finish(self) -> None:
        """Writes the head if anything changed; the transaction may commit then."""
        if self.head == self._stored:
            return
        self.head = dataclasses.replace(self.head, changes=self.head.changes + 1)
        self._connection.execute(
            "UPDATE register SET changes = ?, newest_at = ?, rows = ?, row_hash = ?",
            (*_values(self.head)[1:], row_hash(self.head)),
        )

    def check_all(self) -> None:
        """Checks every row, and that none is missing or too many.

        Raises:
            StorageError: If the rows are not those that were written.
        """
        every: list[Row] = [*self.plans(), *self.warrants(), *self.marks()]
        total = _NO_ROWS
        for row in every:
            total = _xor(total, row_hash(row))
        if total != self.head.rows:
            raise damaged("rows are missing, or there are too many")

    def _read(
        self, kind: type[AnyRow], where: str, values: Sequence[Value]
    ) -> tuple[AnyRow, ...]:
        found = self._connection.execute(f"{_READ[kind]} {where}", values)
        return tuple(_checked(kind, stored) for stored in found)

    def _note(self, *changed: Row | None, at: int) -> None:
        total = self.head.rows
        for row in changed:
            if row is not None:
                total = _xor(total, row_hash(row))
        self.head = dataclasses.replace(
            self.head, rows=total, newest_at=max(at, self.head.newest_at)
        )


def first_head(party: str) -> tuple[Value, ...]:
    """Returns the columns of the head row of an empty register."""
    head = Head(party=party, changes=0, newest_at=0, rows=_NO_ROWS)
    return (1, *_values(head), row_hash(head))


def row_hash(row: Row | Head) -> bytes:
    """Returns the SHA-256 of a row's table and values."""
    form = [_LABEL, row.table, *_values(row)]
    return hashlib.sha256(cbor2.dumps(form, canonical=True)).digest()


def _checked(kind: type[Stored], stored: Sequence[Any]) -> Stored:
    """Returns the row in the columns of a table, if its hash is right."""
    names = [field.name for field in dataclasses.fields(kind)]
    *values, digest = stored
    if len(values) != len(names):
        raise damaged(f"other columns in {kind.table!r}")
    row = kind(**dict(zip(names, values, strict=True)))
    if row_hash(row) != digest:
        raise damaged(f"a changed row in {kind.table!r}")
    return row


def _values(row: Row | Head) -> tuple[Value, ...]:
    return tuple(getattr(row, field.name) for field in dataclasses.fields(row))


def _xor(first: bytes, second: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(first, second, strict=True))
