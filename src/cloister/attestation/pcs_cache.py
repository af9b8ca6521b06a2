"""Fetched collateral on disk, and the highest number seen of each revocation list.

A cache holds nothing that is believed: what is read from it is checked like an answer
from the network, and a file that does not pass counts as missing. The numbers are
different: they are this node's memory of what it has seen, and only ever rise. Whoever
can write to the directory can make them forget, so it guards against services and
networks that hold back what is new, and not against this machine's own administrator.

One directory is one node's: two that write to it could each undo a number of the other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from cloister.attestation.collateral import Collateral, parse_collateral
from cloister.attestation.collateral_source import PckCa, check_belongs
from cloister.attestation.reports import Tee
from cloister.errors import StorageError, VerificationError

Release = Literal["standard", "early"] | int

_NUMBERS_FILE = "crl-numbers.json"
_FMSPC = re.compile(r"[0-9A-Fa-f]{12}")
_MAX_FILE_BYTES = 8 * 1_048_576

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """What collateral is for; a file for each.

    Attributes:
        tee: Kind of environment.
        fmspc: Platform family, 12 upper-case hex digits.
        ca: Authority of the platform's certificate.
        release: Which of Intel's releases was asked for: by name, or by its number.

    Raises:
        ValueError: If `fmspc` is no such thing; a bug of the caller.
    """

    tee: Tee
    fmspc: str
    ca: PckCa
    release: Release

    def __post_init__(self) -> None:
        """Refuses what is no FMSPC: it goes into an address and a file's name."""
        if not _FMSPC.fullmatch(self.fmspc):
            raise ValueError("fmspc must be 12 hex digits")

    @property
    def file_name(self) -> str:
        """Name of its file."""
        return f"{self.tee}-{self.fmspc.upper()}-{self.ca}-{self.release}.json"

    def check_belongs(self, collateral: Collateral) -> None:
        """Checks that collateral is for this.

        Raises:
            VerificationError: If it is for another platform or of another release.
        """
        check_belongs(collateral, tee=self.tee, fmspc=self.fmspc, ca=self.ca)
        if isinstance(self.release, int):
            numbers = evaluation_numbers(collateral)
            if numbers != (self.release, self.release):
                raise VerificationError(
                    "collateral is of another release",
                    code="collateral-foreign",
                    expected=f"TCB evaluation number {self.release}",
                    got=" and ".join(map(str, numbers)),
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a cache has for a key.

    Attributes:
        collateral: The collateral, unverified.
        fetched_at: When it came, by the clock of that moment, in Unix seconds.
    """

    collateral: Collateral
    fetched_at: float


def evaluation_numbers(collateral: Collateral) -> tuple[int, int]:
    """Returns the evaluation numbers of TCB info and QE identity."""
    return (
        collateral.tcb_info.evaluation_number,
        collateral.qe_identity.evaluation_number,
    )


class CollateralCache:
    """A directory of collateral and CRL numbers. May be used from any thread.

    Args:
        directory: Made if it is not there; its owner's alone.

    Raises:
        StorageError: If it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(directory, error) from error
        # What is read of the numbers must be written before another adds to them.
        self._lock = threading.Lock()
        self._numbers = _read_numbers(directory / _NUMBERS_FILE)

    def load(self, key: CacheKey) -> Kept | None:
        """Returns what is kept for `key`, unverified; None if nothing usable is."""
        path = self._directory / key.file_name
        try:
            fetched_at = path.stat().st_mtime
            collateral = parse_collateral(_read(path))
            key.check_belongs(collateral)
        except FileNotFoundError:
            return None
        except (OSError, VerificationError) as error:
            warn_unusable(key, str(error))
            return None
        return Kept(collateral=collateral, fetched_at=fetched_at)

    def store(self, key: CacheKey, collateral: Collateral, *, at: datetime) -> None:
        """Keeps collateral for `key`, in place of what was there.

        Args:
            key: What it is for.
            collateral: What was fetched.
            at: Now; the file's time, by which a later process knows its age.

        Raises:
            StorageError: If it cannot be written.
        """
        self._write(key.file_name, collateral.to_json().encode(), at=at)

    def check_numbers(self, numbers: Iterable[tuple[str, int]]) -> None:
        """Checks that no list is older than one that was seen.

        Args:
            numbers: Number of each list, by its issuer's key.

        Raises:
            VerificationError: If one is.
        """
        for issuer, number in numbers:
            with self._lock:
                seen = self._numbers.get(issuer, number)
            if number < seen:
                raise VerificationError(
                    "revocation list is older than one that was seen",
                    code="crl-rollback",
                    expected=f"number {seen} or higher",
                    got=str(number),
                    remedy="the service, or who stands between, holds back what is "
                    "new; use another one",
                    step=3,
                )

    def record_numbers(self, numbers: Iterable[tuple[str, int]]) -> None:
        """Remembers numbers of lists that are genuine; they only ever rise.

        Raises:
            StorageError: If they cannot be written.
        """
        with self._lock:
            risen = {
                issuer: number
                for issuer, number in numbers
                if number > self._numbers.get(issuer, -1)
            }
            if not risen:
                return
            self._numbers |= risen
            document = _Numbers(
                format=1,
                # As text: a number has up to 160 bits.
                numbers={issuer: str(n) for issuer, n in self._numbers.items()},
            )
            self._write(_NUMBERS_FILE, msgspec.json.encode(document))

    def _write(self, name: str, content: bytes, *, at: datetime | None = None) -> None:
        try:
            _write_whole(self._directory / name, content, at=at)
        except OSError as error:
            raise _unwritable(self._directory / name, error) from error


def warn_unusable(key: CacheKey, why: str) -> None:
    """Logs that a kept file is passed over."""
    _log.warning("cached collateral %s is not used: %s", key.file_name, why)


class _Numbers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    numbers: dict[
        Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")],
        Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,64}\Z")],
    ]


def _read_numbers(path: Path) -> dict[str, int]:
    try:
        document = msgspec.json.decode(_read(path), type=_Numbers)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        # To refuse would protect nothing: who can damage it can remove it as well.
        _log.warning("%s is damaged; CRL numbers seen are forgotten: %s", path, error)
        return {}
    return {issuer: int(number) for issuer, number in document.numbers.items()}


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_FILE_BYTES)


def _write_whole(path: Path, content: bytes, *, at: datetime | None) -> None:
    """Writes a file that is there complete or not at all, on the disk.

    `storage.whole_file` does the same for rooms above; attestation stands below it.
    """
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".part"
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if at is not None:
                os.utime(file.fileno(), (at.timestamp(), at.timestamp()))
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        # Also on Ctrl-C: half a file is never left behind. Raised again below.
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"collateral cannot be kept at {path}",
        code="collateral-cache",
        got=error.strerror or "an error",
        remedy="use a directory that this user can write to, with some space left",
    )
