"""The form of a custodian's database: marks of the format, tables, and their checks."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any, Final

from cloister.custody.register_errors import damaged
from cloister.custody.register_rows import first_head
from cloister.errors import StorageError

APPLICATION_ID: Final = 0x436C7372  # "Clsr"
FORMAT: Final = 2
PAGE_BYTES: Final = 4096
_WITHOUT_KEYS: Final = 1  # the format before keys and records were kept

_SCHEMA = """
CREATE TABLE register (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    party TEXT NOT NULL,
    changes INTEGER NOT NULL CHECK (changes >= 0),
    newest_at INTEGER NOT NULL CHECK (newest_at >= 0),
    generation INTEGER NOT NULL CHECK (generation >= 1),
    rows BLOB NOT NULL CHECK (length(rows) = 32),
    row_hash BLOB NOT NULL CHECK (length(row_hash) = 32)
) STRICT;
CREATE TABLE consents (
    plan_hash BLOB NOT NULL PRIMARY KEY CHECK (length(plan_hash) = 32),
    run_id TEXT NOT NULL,
    plan BLOB NOT NULL CHECK (length(plan) <= 1048576),
    consent BLOB NOT NULL CHECK (length(consent) <= 4096),
    state TEXT NOT NULL CHECK (state IN ('active', 'withdrawn', 'superseded')),
    at INTEGER NOT NULL CHECK (at >= 0),
    row_hash BLOB NOT NULL CHECK (length(row_hash) = 32)
) STRICT;
CREATE UNIQUE INDEX newest_plan_of_run ON consents (run_id)
    WHERE state <> 'superseded';
CREATE TABLE warrants (
    run_id TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('server', 'worker', 'recipient')),
    party TEXT NOT NULL,
    epoch INTEGER NOT NULL CHECK (epoch BETWEEN 1 AND 9007199254740992),
    tls_key BLOB NOT NULL CHECK (length(tls_key) = 91),
    encryption_key BLOB NOT NULL CHECK (length(encryption_key) = 32),
    plan_hash BLOB NOT NULL REFERENCES consents (plan_hash),
    issued_at INTEGER NOT NULL CHECK (issued_at >= 0),
    expires_at INTEGER NOT NULL CHECK (expires_at > issued_at),
    row_hash BLOB NOT NULL CHECK (length(row_hash) = 32),
    PRIMARY KEY (run_id, role, party, epoch),
    UNIQUE (run_id, role, party, tls_key)
) STRICT, WITHOUT ROWID;
CREATE TABLE marks (
    run_id TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('server', 'worker', 'recipient')),
    party TEXT NOT NULL,
    plan_hash BLOB NOT NULL REFERENCES consents (plan_hash),
    round INTEGER NOT NULL CHECK (round >= 0),
    state BLOB NOT NULL CHECK (length(state) = 32),
    server_epoch INTEGER NOT NULL CHECK (server_epoch >= 1),
    server_key BLOB NOT NULL CHECK (length(server_key) = 32),
    audit_head BLOB CHECK (audit_head IS NULL OR length(audit_head) = 32),
    rewound INTEGER NOT NULL CHECK (rewound IN (0, 1)),
    at INTEGER NOT NULL CHECK (at >= 0),
    row_hash BLOB NOT NULL CHECK (length(row_hash) = 32),
    PRIMARY KEY (run_id, role, party)
) STRICT, WITHOUT ROWID;
CREATE TABLE foreign_warrants (
    run_id TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('server', 'worker', 'recipient')),
    party TEXT NOT NULL,
    epoch INTEGER NOT NULL CHECK (epoch BETWEEN 1 AND 9007199254740992),
    tls_key BLOB NOT NULL CHECK (length(tls_key) = 91),
    encryption_key BLOB NOT NULL CHECK (length(encryption_key) = 32),
    plan_hash BLOB NOT NULL REFERENCES consents (plan_hash),
    issued_at INTEGER NOT NULL CHECK (issued_at >= 0),
    expires_at INTEGER NOT NULL CHECK (expires_at > issued_at),
    row_hash BLOB NOT NULL CHECK (length(row_hash) = 32),
    PRIMARY KEY (run_id, role, party)
) STRICT, WITHOUT ROWID;
CREATE TABLE keys (
    key_id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('data', 'state-share', 'vault')),
    label TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'retired', 'revoked')),
    sealed BLOB CHECK ((sealed IS NULL) = (state = 'revoked')),
    created_at INTEGER NOT NULL CHECK (created_at >= 0),
    at INTEGER NOT NULL CHECK (at >= 0),
    row_hash BLOB NOT NULL CHECK (length(row_hash) = 32)
) STRICT;
CREATE UNIQUE INDEX active_key_of_label ON keys (kind, label) WHERE state = 'active';
CREATE TABLE records (
    seq INTEGER NOT NULL PRIMARY KEY CHECK (seq >= 0),
    previous TEXT NOT NULL CHECK (length(previous) = 64),
    at_ms INTEGER NOT NULL CHECK (at_ms >= 0),
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    payload BLOB NOT NULL,
    row_hash BLOB NOT NULL CHECK (length(row_hash) = 32)
) STRICT;
CREATE INDEX records_about ON records (kind, subject, at_ms);
CREATE TRIGGER no_record_changes BEFORE UPDATE ON records
    BEGIN SELECT RAISE(ABORT, 'a record is never changed'); END;
CREATE TRIGGER no_record_goes BEFORE DELETE ON records
    BEGIN SELECT RAISE(ABORT, 'a record is never deleted'); END;
"""


def write_empty(connection: sqlite3.Connection, *, party: str) -> None:
    """Makes an empty file the register of `party`, in one transaction."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    _make_tables(connection)
    connection.execute(
        "INSERT INTO register VALUES (?, ?, ?, ?, ?, ?, ?)", first_head(party)
    )
    connection.execute("COMMIT")


def _make_tables(connection: sqlite3.Connection) -> None:
    # One by one: executescript would commit the transaction it is called in.
    for statement in _SCHEMA.split(";\n"):
        connection.execute(statement)


def check_format(connection: sqlite3.Connection) -> None:
    """Refuses what another application, or another version, wrote.

    Raises:
        StorageError: If it did.
    """
    marked = one_value(connection, "PRAGMA application_id")
    if marked != APPLICATION_ID:
        raise StorageError(
            "this database is not a custodian's",
            code="register-foreign",
            expected=f"application {APPLICATION_ID:#010x}",
            got=f"application {marked:#010x}",
            remedy="Correct [custodian] database.",
        )
    version = one_value(connection, "PRAGMA user_version")
    if version != FORMAT:
        raise StorageError(
            "the custodian's database has another format",
            code="register-format",
            expected=f"format {FORMAT}",
            got=f"format {version}",
            remedy="End its runs with the version of Cloister that wrote it. For new"
            " runs make a new custodian: cloister custodian init."
            if version == _WITHOUT_KEYS
            else "Use the version of Cloister that last wrote it.",
        )


def check_structure(connection: sqlite3.Connection) -> None:
    """Refuses damaged pages, and tables or triggers that are not ours.

    Raises:
        StorageError: If there are any.
    """
    found = connection.execute("PRAGMA integrity_check(1)").fetchall()
    if found != [("ok",)]:
        raise damaged(str(found[0][0])[:200] if found else "nothing to check")
    if connection.execute("PRAGMA foreign_key_check").fetchall():
        raise damaged("a warrant under a plan that is not there")
    with contextlib.closing(sqlite3.connect(":memory:")) as wanted:
        _make_tables(wanted)
        if _schema_of(connection) != _schema_of(wanted):
            raise damaged("other tables than its format has")


def _schema_of(connection: sqlite3.Connection) -> set[tuple[Any, ...]]:
    read = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
    return set(connection.execute(read).fetchall())


def one_value(connection: sqlite3.Connection, question: str) -> Any:
    """Returns the one value that answers a question in SQL."""
    return connection.execute(question).fetchone()[0]
