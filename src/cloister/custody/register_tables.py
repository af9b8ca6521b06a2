"""Reads and writes the rows of a custodian's database, inside one transaction."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from cloister.custody.register_errors import KEPT_FREE_BYTES, damaged, no_room
from cloister.custody.register_rows import (
    NO_ROWS,
    AnyRow,
    ForeignRow,
    Head,
    KeyRow,
    MarkRow,
    PlanRow,
    RecordRow,
    Row,
    Value,
    WarrantRow,
    checked,
    row_hash,
    values_of,
    xor,
)
from cloister.custody.register_schema import PAGE_BYTES, one_value
from cloister.storage.audit_chain import FIRST, head_of

_READ: dict[type[Row], str] = {
    PlanRow: "SELECT * FROM consents",
    WarrantRow: "SELECT * FROM warrants",
    MarkRow: "SELECT * FROM marks",
    ForeignRow: "SELECT * FROM foreign_warrants",
    KeyRow: "SELECT * FROM keys",
    RecordRow: "SELECT * FROM records",
}
_WRITE: dict[type[Row], str] = {
    PlanRow: """
        INSERT INTO consents VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (plan_hash) DO UPDATE SET
            run_id = excluded.run_id, plan = excluded.plan,
            consent = excluded.consent, state = excluded.state,
            at = excluded.at, row_hash = excluded.row_hash""",
    WarrantRow: """
        INSERT INTO warrants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (run_id, role, party, epoch) DO UPDATE SET
            tls_key = excluded.tls_key, encryption_key = excluded.encryption_key,
            plan_hash = excluded.plan_hash, issued_at = excluded.issued_at,
            expires_at = excluded.expires_at,
            row_hash = excluded.row_hash""",
    MarkRow: """
        INSERT INTO marks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (run_id, role, party) DO UPDATE SET
            plan_hash = excluded.plan_hash, round = excluded.round,
            state = excluded.state, server_epoch = excluded.server_epoch,
            server_key = excluded.server_key,
            audit_head = excluded.audit_head, rewound = excluded.rewound,
            at = excluded.at,
            row_hash = excluded.row_hash""",
    ForeignRow: """
        INSERT INTO foreign_warrants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (run_id, role, party) DO UPDATE SET
            epoch = excluded.epoch, tls_key = excluded.tls_key,
            encryption_key = excluded.encryption_key,
            plan_hash = excluded.plan_hash, issued_at = excluded.issued_at,
            expires_at = excluded.expires_at, row_hash = excluded.row_hash""",
    KeyRow: """
        INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (key_id) DO UPDATE SET
            kind = excluded.kind, label = excluded.label, state = excluded.state,
            sealed = excluded.sealed, created_at = excluded.created_at,
            at = excluded.at, row_hash = excluded.row_hash""",
    # No conflict is resolved: a record stays as it is.
    RecordRow: "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)",
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
        self._stored = self.head = checked(Head, found[0][1:])

    def plans(self, where: str = "", *values: Value) -> tuple[PlanRow, ...]:
        """Returns consents, checked; `where` is a constant clause of SQL."""
        return self._read(PlanRow, where, values)

    def warrants(self, where: str = "", *values: Value) -> tuple[WarrantRow, ...]:
        """Returns warrants, checked; `where` is a constant clause of SQL."""
        return self._read(WarrantRow, where, values)

    def marks(self, where: str = "", *values: Value) -> tuple[MarkRow, ...]:
        """Returns marks, checked; `where` is a constant clause of SQL."""
        return self._read(MarkRow, where, values)

    def foreign_warrants(
        self, where: str = "", *values: Value
    ) -> tuple[ForeignRow, ...]:
        """Returns nodes of other parties, checked; `where` is a constant clause."""
        return self._read(ForeignRow, where, values)

    def kept_keys(self, where: str = "", *values: Value) -> tuple[KeyRow, ...]:
        """Returns keys, checked; `where` is a constant clause of SQL."""
        return self._read(KeyRow, where, values)

    def records(self, where: str = "", *values: Value) -> Iterator[RecordRow]:
        """Yields records, checked, one by one; there may be many."""
        return self._rows(RecordRow, where, values)

    def count_records(self, kind: str, subject: str, *, after_ms: int) -> int:
        """Returns how many records of a kind are about a subject, later than a time.

        Out of the index, so nothing of them is read or checked.
        """
        found = self._connection.execute(
            "SELECT count(*) FROM records WHERE kind = ? AND subject = ? AND at_ms > ?",
            (kind, subject, after_ms),
        )
        return int(found.fetchone()[0])

    def check_room(self) -> None:
        """Checks that there is room for what nodes bring, beside what is kept free.

        What an operator does, a consent or its end, needs some when nodes, or their
        hosts, have filled the rest.

        Raises:
            StorageError: If there is none.
        """
        most, used, free = (
            one_value(self._connection, f"PRAGMA {name}")
            for name in ("max_page_count", "page_count", "freelist_count")
        )
        if (most - used + free) * PAGE_BYTES < KEPT_FREE_BYTES:
            raise no_room(
                f"{KEPT_FREE_BYTES} bytes are kept for what its operator does"
            )

    def put(self, row: Row, *, instead_of: Row | None, at: int) -> None:
        """Writes a row.

        Args:
            row: The row.
            instead_of: The row that has its primary key now, or None for none.
            at: The time of the change, Unix seconds.
        """
        values = (*values_of(row), row_hash(row))
        self._connection.execute(_WRITE[type(row)], values)
        self._note(row, instead_of, at=at)

    def set_generation(self, generation: int) -> None:
        """Says which key of the keyring seals the keys from now on."""
        self.head = dataclasses.replace(self.head, generation=generation)

    def finish(self) -> None:
        """Writes the head if anything changed; the transaction may commit then."""
        if self.head == self._stored:
            return
        self.head = dataclasses.replace(self.head, changes=self.head.changes + 1)
        self._connection.execute(
            "UPDATE register SET changes = ?, newest_at = ?, generation = ?, rows = ?,"
            " row_hash = ?",
            (*values_of(self.head)[1:], row_hash(self.head)),
        )

    def check_all(self) -> None:
        """Checks every row, and that none is missing or too many.

        Raises:
            StorageError: If the rows are not those that were written.
        """
        total, head, seq = NO_ROWS, FIRST, 0
        kinds: tuple[type[Any], ...] = tuple(_READ)
        for kind in kinds:
            for row in self._rows(kind, "", ()):
                total = xor(total, row_hash(row))
        for record in self.records("ORDER BY seq"):
            if (record.seq, record.previous) != (seq, head):
                raise damaged("a record that does not follow the one before it")
            head, seq = head_of(record.payload), seq + 1
        if total != self.head.rows:
            raise damaged("rows are missing, or there are too many")

    def _read(
        self, kind: type[AnyRow], where: str, values: Sequence[Value]
    ) -> tuple[AnyRow, ...]:
        return tuple(self._rows(kind, where, values))

    def _rows(
        self, kind: type[AnyRow], where: str, values: Sequence[Value]
    ) -> Iterator[AnyRow]:
        found = self._connection.execute(f"{_READ[kind]} {where}", values)
        return (checked(kind, stored) for stored in found)

    def _note(self, *changed: Row | None, at: int) -> None:
        total = self.head.rows
        for row in changed:
            if row is not None:
                total = xor(total, row_hash(row))
        self.head = dataclasses.replace(
            self.head, rows=total, newest_at=max(at, self.head.newest_at)
        )
