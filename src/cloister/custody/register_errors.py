"""What SQLite and the file system say of a custodian's database, as our errors."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloister.errors import StorageError

# Some 30,000 warrants with the evidence for each; a host that starts nodes for ever
# fills no more.
MAX_BYTES: Final = 256 * 1024 * 1024
# Of that, for what the operator does; no node's doing fills it.
KEPT_FREE_BYTES: Final = 1024 * 1024
# Another process holds the lock for milliseconds: as long as its disk takes to write.
BUSY_SECONDS: Final = 10.0


@contextlib.contextmanager
def our_errors(path: Path) -> Iterator[None]:
    """Turns what SQLite and the file system raise in its body into `StorageError`."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a bug of ours, not the file's
    except sqlite3.Error as error:
        raise _storage_error(error, path) from error
    except UnicodeError as error:
        # SQLite quotes a damaged name in its message, and Python cannot read that.
        raise damaged("a text that is not UTF-8") from error
    except OSError as error:
        raise unusable(path, got=error.strerror or "an error") from error


def _storage_error(error: sqlite3.Error, path: Path) -> StorageError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return replaced(path, got="another file of this name, or none")
    primary = code & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError(
            "another process holds the custodian's database",
            code="register-busy",
            expected=f"to be free within {BUSY_SECONDS:.0f} seconds",
            remedy=f"Find what has {path} open, such as a backup, and end it.",
        )
    if primary == sqlite3.SQLITE_FULL:
        return no_room(str(error))
    if primary == sqlite3.SQLITE_CONSTRAINT:
        return broken_rule(str(error)[:200])
    if primary in (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    ):
        return unusable(path, got=str(error))
    return damaged(str(error)[:200])


def no_room(got: str) -> StorageError:
    """Returns the error for a database, or a disk, that takes no more."""
    return StorageError(
        "there is no room for the custodian's database",
        code="register-full",
        expected=f"room on the disk, and at most {MAX_BYTES} bytes",
        got=got,
        remedy="Nothing was changed. Make room on the disk. If the file itself is full,"
        " withdraw from its runs; new runs need a new custodian: cloister custodian"
        " init.",
    )


def broken_rule(got: str) -> StorageError:
    """Returns the error for a row that the tables' own rules forbid: a fault of ours.

    Whoever caused it, the rows that are there are whole.
    """
    return StorageError(
        "the custodian was about to write what its database does not allow",
        code="register-rule",
        expected="rows that every check before them let through",
        got=got,
        remedy="Nothing was changed, and nothing is lost. This is a fault in Cloister:"
        " please report it with this line.",
    )


def unusable(path: Path, *, got: str) -> StorageError:
    """Returns the error for a file that cannot be read or written."""
    return StorageError(
        "cannot use the custodian's database",
        code="register-unusable",
        expected=f"to read and write {path} and its directory",
        got=got,
        remedy="See to the disk and the permissions, then try again.",
    )


def exists(path: Path) -> StorageError:
    """Returns the error for a new database in the place of another."""
    return StorageError(
        "there is a database of a custodian already",
        code="register-exists",
        expected=f"nothing at {path}, and no journal beside it",
        remedy="Use it, or move it away with all beside it that begins with its name.",
    )


def foreign(path: Path, *, got: str) -> StorageError:
    """Returns the error for what cannot be a database of a custodian."""
    return StorageError(
        "this is not a custodian's database",
        code="register-foreign",
        expected=f"a file of at most {MAX_BYTES} bytes at {path}",
        got=got,
        remedy="Correct [custodian] database.",
    )


def replaced(path: Path, *, got: str) -> StorageError:
    """Returns the error for a file that others changed under a running custodian."""
    return StorageError(
        "the custodian's database was replaced while in use",
        code="register-replaced",
        expected=f"the same file {path}, changed by nobody but custodians",
        got=got,
        remedy="Stop the custodian. Find out who did it; put back the newest copy.",
    )


def damaged(got: str) -> StorageError:
    """Returns the error for content that is not what was written."""
    return StorageError(
        "the custodian's database is damaged",
        code="register-damaged",
        expected="the rows as they were written",
        got=got,
        remedy="Do not write to it. Put back the newest copy that is whole, or"
        " start new runs with a new database: an old copy forgets epochs and marks.",
    )
