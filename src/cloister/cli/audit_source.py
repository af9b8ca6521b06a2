"""Where `cloister audit` finds a log, custodians' heads and the sealed model.

Nothing of what is read here is believed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cloister.cli.places import AUDIT_NAME, MODEL_NAME
from cloister.cli.quote_file import read_bytes
from cloister.errors import StorageError
from cloister.storage.audit_chain import Link, parse_links
from cloister.storage.dsse import Envelope, parse_envelope

_CHUNK_BYTES = 2**20
_FIRST_OF_A_CUSTODIAN = "custodian-opened"


class _First(msgspec.Struct):
    """What tells a custodian's first record; what else it holds is not looked at."""

    kind: str
    party: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSource:
    """A log on disk.

    Attributes:
        path: The file.
        lines: How many whole lines it has.
        unfinished_bytes: Size of what stands behind the last whole line: whoever wrote
            it died, or writes just now. It is not looked at, and the next server drops
            it.
        model_path: The sealed model beside it; None if there is none.
    """

    path: Path
    lines: int
    unfinished_bytes: int
    model_path: Path | None

    def links(self) -> Iterator[Link]:
        """Yields the log's records while they are a chain; see `parse_links`.

        Raises:
            StorageError: If they are none, or the file cannot be read.
        """
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise _unreadable(self.path, error) from error
        with file:
            yield from itertools.islice(parse_links(file), self.lines)

    def custodian(self) -> str | None:
        """Returns whose custodian's log the first record says this is, if any's.

        Raises:
            StorageError: If there is no first record.
        """
        first = next(self.links(), None)
        if first is None:
            raise StorageError(
                f"the log {self.path} is empty",
                code="audit-empty",
                expected="an audit log",
            )
        try:
            said = msgspec.json.decode(first.entry, type=_First)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None  # whoever verifies it as a run's says what is wrong with it
        return said.party if said.kind == _FIRST_OF_A_CUSTODIAN else None


def find_log(path: Path) -> AuditSource:
    """Returns the log at `path`: the file, or that of the run directory.

    Raises:
        StorageError: If it cannot be read.
    """
    inside = path.is_dir()
    file = path / AUDIT_NAME if inside else path
    lines, unfinished = _count_lines(file)
    model = path / MODEL_NAME
    return AuditSource(
        path=file,
        lines=lines,
        unfinished_bytes=unfinished,
        model_path=model if inside and model.exists() else None,
    )


def read_head(path: Path) -> Envelope:
    """Returns what `cloister custodian head` wrote to a file; not verified.

    Raises:
        ConfigError: If it cannot be read.
        StorageError: If it is no envelope.
    """
    try:
        return parse_envelope(read_bytes(path).removesuffix(b"\n"))
    except StorageError as error:
        raise StorageError(
            f"{path} holds no statement of a custodian",
            code="audit-head-malformed",
            expected="one line, as `cloister custodian head` writes it",
            got=error.got,
        ) from error


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex.

    Raises:
        StorageError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _count_lines(path: Path) -> tuple[int, int]:
    """Returns how many whole lines a file has, and how much stands behind them."""
    lines, behind = 0, 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                lines += chunk.count(b"\n")
                end = chunk.rfind(b"\n")
                behind = behind + len(chunk) if end < 0 else len(chunk) - end - 1
    except OSError as error:
        raise _unreadable(path, error) from error
    return lines, behind


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot read {path}",
        code="audit-unreadable",
        expected="a run directory, or an audit log",
        got=error.strerror or "an error",
    )
