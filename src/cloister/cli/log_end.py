"""How an audit log ends: its last whole record, read without the rest.

Nothing of it is believed: no signature is looked at, and a host may have cut or made
the file. It is good for what keeps people from mistakes, and for nothing else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cloister.errors import CloisterError, StorageError
from cloister.storage.dsse import MAX_LINE_BYTES, parse_envelope

SEALED = "model-sealed"
FAILED = "run-failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnd:
    """What the last whole record of a log says.

    Attributes:
        kind: Its kind; empty where there is no record.
        state: SHA-256 of the state that it states, in hex; None where it states none.
    """

    kind: str = ""
    state: str | None = None


class _Entry(msgspec.Struct):
    kind: str = ""
    state: str | None = None


class _Record(msgspec.Struct):
    entry: _Entry


def read_end(path: Path) -> LogEnd:
    """Returns how a log ends; a file that is no log ends with no record.

    Raises:
        StorageError: If it cannot be read (``audit-unreadable``).
    """
    try:
        line = _last_line(path)
    except OSError as error:
        raise StorageError(
            f"cannot read the log {path}",
            code="audit-unreadable",
            expected="a readable file",
            got=error.strerror or "an error",
        ) from error
    try:
        entry = msgspec.json.decode(parse_envelope(line).payload, type=_Record).entry
    # Whatever else it may be: the server says what is wrong with it.
    except (CloisterError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return LogEnd()
    return LogEnd(kind=entry.kind, state=entry.state)


def _last_line(path: Path) -> bytes:
    """Returns the last line that has an end; what stands behind it was broken off."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        # Room for one line, and for the part of another one behind it.
        file.seek(max(0, size - 2 * (MAX_LINE_BYTES + 1)))
        whole, end, _ = file.read().rpartition(b"\n")
        return whole.rpartition(b"\n")[2] if end else b""
