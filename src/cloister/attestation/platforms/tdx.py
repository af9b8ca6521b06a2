"""A TDX trust domain: quotes from configfs-tsm, Linux 6.7 and later.

Follows the kernel's Documentation/ABI/testing/configfs-tsm. Each quote has an entry of
its own under an unpredictable name: making a directory makes the entry, its files are
there at once, and removing the directory removes it, files and all. `generation` counts
the writes to the entry; one that is not ours means that somebody else writes to it.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

from cloister.attestation.platforms.quoting import (
    checked_quote,
    device_error,
    read_bounded,
    require_report_data,
    write_once,
)
from cloister.attestation.platforms.sealing import no_sealing_key
from cloister.attestation.reports import Tee
from cloister.errors import PlatformError

TSM_REPORT_DIRECTORY = Path("/sys/kernel/config/tsm/report")
INBLOB_FILE = "inblob"
OUTBLOB_FILE = "outblob"
PROVIDER_FILE = "provider"
GENERATION_FILE = "generation"
TDX_PROVIDER = "tdx_guest"
# Whoever races for an entry with a random name does it on purpose; a few times are
# enough to get past an accident.
MAX_ATTEMPTS = 3

# Attributes are at most a page.
_MAX_ATTRIBUTE_BYTES = 4_096
_KERNEL = (
    "a TD needs Linux 6.7, the module tdx_guest and configfs at /sys/kernel/config; "
    "only root may make reports"
)
_QUOTING_SERVICE = "is the quote generation service (qgsd) running on the host?"

_log = logging.getLogger(__name__)


class ReportEntries(Protocol):
    """Makes and removes entries; what a kernel does behind mkdir and rmdir."""

    def make(self, entry: Path) -> None:
        """Makes a directory, in which the entry's files then are.

        Raises:
            OSError: If it cannot be made.
        """
        ...

    def remove(self, entry: Path) -> None:
        """Removes the entry with its files.

        Raises:
            OSError: If it cannot be removed.
        """
        ...


class ConfigfsEntries:
    """The kernel's own."""

    def make(self, entry: Path) -> None:
        """Makes an entry; see `ReportEntries`."""
        entry.mkdir(mode=0o700)

    def remove(self, entry: Path) -> None:
        """Removes an entry; see `ReportEntries`."""
        entry.rmdir()


class _RaceError(Exception):
    """Somebody else wrote to our entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPlatform:
    """The trust domain that this process runs in; made by `open_tdx_platform`.

    Entries are independent of each other, so any thread may quote.

    Attributes:
        directory: Where entries are made.
        entries: Makes and removes them.
    """

    directory: Path
    entries: ReportEntries = field(default_factory=ConfigfsEntries)

    @property
    def simulated(self) -> bool:
        """Always false."""
        return False

    @property
    def tee(self) -> Tee:
        """Always "tdx"."""
        return "tdx"

    @property
    def name(self) -> str:
        """Name for people and logs."""
        return "TDX guest"

    def quote(self, report_data: bytes) -> bytes:
        """Returns a fresh quote over exactly 64 bytes of report data.

        Raises:
            PlatformError: If the trust domain cannot quote, quotes something else, or
                somebody else keeps writing to the entries.
            ValueError: If `report_data` is not 64 bytes; a bug of the caller.
        """
        require_report_data(report_data)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                quote = self._attempt(report_data)
            except _RaceError as race:
                _log.warning("quote: attempt %d: %s", attempt, race)
                continue
            return checked_quote(
                quote, tee=self.tee, report_data=report_data, device=self.name
            )
        raise PlatformError(
            "another process writes to this process's report entries",
            code="platform-race",
            expected="an entry for each process",
            got=f"{MAX_ATTEMPTS} disturbed attempts",
            remedy="find out who else uses " + str(self.directory),
        )

    def sealing_key(self) -> NoReturn:
        """Raises: TDX 1.0 and 1.5 have no key of a trust domain.

        Raises:
            PlatformError: Always; code `sealing-unavailable`.
        """
        raise no_sealing_key(self.name, got="TDX, which has none")

    def provider(self) -> str:
        """Returns what the kernel calls the maker of its quotes.

        Raises:
            PlatformError: If the kernel makes none.
        """
        with self._entry() as entry:
            return _attribute(entry / PROVIDER_FILE)

    def _attempt(self, report_data: bytes) -> bytes:
        with self._entry() as entry:
            _require_tdx(_attribute(entry / PROVIDER_FILE))
            before = _generation(entry)
            # configfs takes the blob when the file is closed, and tells of no failure
            # then; the generation does.
            write_once(entry / INBLOB_FILE, report_data)
            quote = read_bounded(entry / OUTBLOB_FILE)
            after = _generation(entry)
        if after != before + 1:
            raise _RaceError(f"generation {after} where {before + 1} was expected")
        return quote

    @contextlib.contextmanager
    def _entry(self) -> Iterator[Path]:
        """Yields a new entry, and removes it whatever happens."""
        entry = self.directory / f"cloister-{secrets.token_hex(16)}"
        try:
            self.entries.make(entry)
        except OSError as error:
            raise device_error(
                "the kernel makes no attestation reports",
                self.directory,
                error,
                remedy=_KERNEL,
            ) from error
        try:
            yield entry
        except OSError as error:
            raise device_error(
                "the trust domain cannot quote", entry, error, remedy=_QUOTING_SERVICE
            ) from error
        finally:
            self._remove(entry)

    def _remove(self, entry: Path) -> None:
        try:
            self.entries.remove(entry)
        except OSError as error:
            # The quote is good; an entry that stays costs the kernel some memory.
            _log.warning("%s cannot be removed: %s", entry, error.strerror)


def open_tdx_platform(
    directory: Path = TSM_REPORT_DIRECTORY, *, entries: ReportEntries | None = None
) -> TdxPlatform:
    """Returns the trust domain that this process runs in.

    Args:
        directory: The kernel's report directory.
        entries: Makes and removes entries; None for the kernel's own.

    Raises:
        PlatformError: If the kernel makes no reports, or another machine's than TDX.
    """
    platform = TdxPlatform(directory=directory, entries=entries or ConfigfsEntries())
    _require_tdx(platform.provider())
    return platform


def _require_tdx(provider: str) -> None:
    if provider != TDX_PROVIDER:
        raise PlatformError(
            "this machine's attestation reports are not TDX quotes",
            code="platform-provider",
            expected=TDX_PROVIDER,
            got=repr(provider[:64]),
            remedy="run in a TDX guest; AMD SEV-SNP is not supported yet",
        )


def _generation(entry: Path) -> int:
    text = _attribute(entry / GENERATION_FILE)
    if not (text.isascii() and text.isdigit()):
        raise PlatformError(
            "the kernel's report entries have another form",
            code="platform-device",
            expected="a number as generation",
            got=repr(text[:64]),
            remedy=_KERNEL,
        )
    return int(text)


def _attribute(path: Path) -> str:
    content = read_bounded(path, max_bytes=_MAX_ATTRIBUTE_BYTES)
    return content.decode("latin-1").strip()
