"""How a command ends, for scripts; documented in `docs/how-to/exit-codes.md`."""

from __future__ import annotations

from enum import IntEnum

from cloister.errors import (
    CloisterError,
    ConfigError,
    PlatformError,
    ProtocolError,
    StorageError,
    VerificationError,
)


class ExitCode(IntEnum):
    """Exit status of every command."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    VERIFICATION = 3
    STORAGE = 4
    PROTOCOL = 5
    PLATFORM = 6
    INTERRUPTED = 130


_BY_FAULT: tuple[tuple[type[CloisterError], ExitCode], ...] = (
    (ConfigError, ExitCode.USAGE),
    (VerificationError, ExitCode.VERIFICATION),
    (StorageError, ExitCode.STORAGE),
    (ProtocolError, ExitCode.PROTOCOL),
    (PlatformError, ExitCode.PLATFORM),
)


def exit_code_of(error: CloisterError) -> ExitCode:
    """Returns the exit status for an error, by whose fault it is."""
    for kind, code in _BY_FAULT:
        if isinstance(error, kind):
            return code
    return ExitCode.INTERNAL
