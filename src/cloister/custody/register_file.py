"""A custodian's database as a file: made, opened, locked, checked; none of its rules.

SQLite with a rollback journal, so that at rest all is in one file. ``synchronous`` is
EXTRA: FULL, and the journal's end is on the disk too before a commit returns. With FULL
alone a power cut just after a commit could bring the journal back, and take the commit
with it. Why SQLite and why so: ``docs/adr/0014-sqlite-for-the-custodian.md``.

Only one thing is kept in memory: the head row, which counts changes. It finds an older
copy that is put in the file's place while this process runs. After a restart nothing
does.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from cloister.custody.register_errors import (
    BUSY_SECONDS,
    MAX_BYTES,
    damaged,
    exists,
    foreign,
    our_errors,
    replaced,
    unusable,
)
from cloister.custody.register_rows import Head
from cloister.custody.register_schema import (
    PAGE_BYTES,
    check_format,
    check_structure,
    one_value,
    write_empty,
)
from cloister.custody.register_tables import Rows
from cloister.errors import StorageError

_BESIDE = ("-journal", "-wal", "-shm")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class RegisterFile:
    """The open database of one custodian; for any thread of one process.

    Args:
        path: The file; `create_file` made it.

    Raises:
        StorageError: If it is missing, not a register of this version, open to other
            users, damaged, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: Head | None = None
        with our_errors(path):
            self._place = _check_place(path)
            _check_writable(path)
            self._connection: sqlite3.Connection | None = _connect(path)
            try:
                check_format(self._connection)
                _prepare(self._connection)
                check_structure(self._connection)
                with self.transaction() as rows:
                    rows.check_all()
                    self.party = rows.head.party
            except BaseException:
                # Also on Ctrl-C: nobody has this object yet to close it. Raised again.
                self.close()
                raise

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Rows]:
        """Yields the rows; what the body changed is on the disk when it ends.

        If the body raises, nothing is changed. No other process writes meanwhile.

        Raises:
            StorageError: If the file was replaced, is locked for too long, is damaged,
                or cannot be written.
        """
        with self._lock, our_errors(self._path):
            connection = self._connection
            if connection is None:
                raise RuntimeError("the register is closed")
            self._check_same_file()
            connection.execute("BEGIN IMMEDIATE")
            try:
                rows = Rows(connection)
                self._check_no_older(rows.head)
                yield rows
                rows.finish()
                connection.execute("COMMIT")
            except BaseException:
                # The first error is the one to show. Whatever stays undone here is
                # undone by the next one who opens the file.
                with contextlib.suppress(sqlite3.Error):
                    connection.rollback()
                raise
            self._known = rows.head

    def _check_same_file(self) -> None:
        # By name: opening and closing the file once more would drop SQLite's locks.
        if _check_place(self._path) != self._place:
            raise replaced(self._path, got="another file of this name")

    def _check_no_older(self, head: Head) -> None:
        known = self._known
        if known is None or head.changes > known.changes:
            return
        if head != known:
            raise replaced(self._path, got="an older copy of it")


def create_file(path: Path, *, party: str) -> None:
    """Makes an empty register; it appears whole or not at all, with mode 0600.

    Raises:
        StorageError: If anything of that name is there, or it cannot be written.
    """
    part: Path | None = None
    try:
        _check_free(path)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part"
        )
        os.close(handle)
        part = Path(name)
        with our_errors(path), contextlib.closing(_connect(part)) as connection:
            _prepare(connection)
            write_empty(connection, party=party)
        # A link, not a rename: it never replaces what came into being meanwhile.
        os.link(part, path)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise exists(path) from error
        raise unusable(path, got=error.strerror or "an error") from error
    finally:
        if part is not None:
            for ending in ("", *_BESIDE):
                with contextlib.suppress(OSError):
                    Path(f"{part}{ending}").unlink()
    with our_errors(path):
        _sync_directory(path.parent)


def _check_free(path: Path) -> None:
    # A journal left by a deleted database would be rolled back into the new one.
    for ending in ("", *_BESIDE):
        if os.path.lexists(f"{path}{ending}"):
            raise FileExistsError


def _check_place(path: Path) -> tuple[int, int]:
    """Returns what tells this file from any other, now."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise StorageError(
            "there is no database of the custodian",
            code="register-missing",
            expected=f"a file {path}",
            remedy="Make one with: cloister init, or put back the newest copy.",
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise foreign(path, got="something that is no file")
    if found.st_size > MAX_BYTES:
        raise foreign(path, got=f"{found.st_size} bytes")
    if found.st_mode & _OTHERS:
        raise StorageError(
            f"other users can reach the custodian's database {path}",
            code="register-exposed",
            expected="mode 0600",
            got=f"mode {stat.S_IMODE(found.st_mode):04o}",
            remedy="Find out who could write to it; then: chmod 600",
        )
    return found.st_dev, found.st_ino


def _check_writable(path: Path) -> None:
    # Found out at the start of a custodian, not when the first node comes.
    for place, wanted in ((path, os.R_OK | os.W_OK), (path.parent, os.W_OK | os.X_OK)):
        if not os.access(place, wanted, effective_ids=True):
            raise unusable(path, got=f"no permission to write {place}")


def _connect(path: Path) -> sqlite3.Connection:
    # mode=rw: never makes a file. Transactions are begun and ended by us alone.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _prepare(connection: sqlite3.Connection) -> None:
    for setting in (
        "journal_mode = DELETE",
        "synchronous = EXTRA",
        "foreign_keys = ON",
        # What a key was sealed to does not stay in the free pages of the file.
        "secure_delete = ON",
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "mmap_size = 0",
        f"max_page_count = {MAX_BYTES // PAGE_BYTES}",
    ):
        connection.execute(f"PRAGMA {setting}").fetchall()
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    if one_value(connection, "PRAGMA journal_mode") != "delete":
        raise damaged("a journal of another kind")


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
