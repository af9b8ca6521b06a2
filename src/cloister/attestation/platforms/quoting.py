"""What every hardware platform does around a quote: reads it whole, and looks at it.

A device answers for the whole machine, so a quote over another caller's report data is
not impossible. It would be refused by the peer; here the reason is known.
"""

from __future__ import annotations

import os
from pathlib import Path

from cloister.attestation.evidence import MAX_QUOTE_BYTES, parse_evidence
from cloister.attestation.reports import REPORT_DATA_BYTES, Tee
from cloister.errors import PlatformError, VerificationError

_CHUNK_BYTES = 4_096


def require_report_data(report_data: bytes) -> None:
    """Checks the length of what is to be quoted.

    Raises:
        ValueError: If it is not 64 bytes; a bug of the caller.
    """
    if len(report_data) != REPORT_DATA_BYTES:
        raise ValueError(f"report_data must be {REPORT_DATA_BYTES} bytes")


def read_bounded(path: Path, *, max_bytes: int = MAX_QUOTE_BYTES) -> bytes:
    """Returns a device file's content to its end; reads come in pieces of any size.

    Raises:
        PlatformError: If there is more of it than `max_bytes`.
        OSError: If it cannot be read.
    """
    content = bytearray()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while piece := os.read(descriptor, _CHUNK_BYTES):
            content += piece
            if len(content) > max_bytes:
                raise PlatformError(
                    f"{path} does not end",
                    code="platform-device",
                    expected=f"at most {max_bytes} bytes",
                    remedy="is this directory the kernel's own?",
                )
    finally:
        os.close(descriptor)
    return bytes(content)


def write_once(path: Path, content: bytes) -> None:
    """Writes to a device file that is there, in one write.

    Raises:
        OSError: If it cannot be written, or not whole.
    """
    # Neither made nor truncated: a device file is the kernel's.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        written = os.write(descriptor, content)
    finally:
        os.close(descriptor)
    if written != len(content):
        raise OSError(f"{written} of {len(content)} bytes written")


def checked_quote(quote: bytes, *, tee: Tee, report_data: bytes, device: str) -> bytes:
    """Returns the quote, if it is one of `tee` over exactly this report data.

    Whether it is genuine is for the peer to find out.

    Args:
        quote: What the device gave.
        tee: Kind of environment it must be of.
        report_data: What was asked for.
        device: Name of the device, for errors.

    Raises:
        PlatformError: If it is anything else.
    """
    try:
        evidence = parse_evidence(quote)
    except VerificationError as error:
        raise PlatformError(
            f"{device} gave no usable quote: {error.what}",
            code="platform-quote-malformed",
            expected=error.expected or "a quote with ECDSA P-256",
            got=error.got or f"{len(quote)} bytes",
            remedy="check the quoting service on the host (aesmd or qgsd) and its "
            "certification",
        ) from error
    if evidence.tee != tee:
        raise PlatformError(
            f"{device} quotes another kind of environment",
            code="platform-quote-foreign",
            expected=tee,
            got=evidence.tee,
        )
    if evidence.report.report_data != report_data:
        raise PlatformError(
            f"{device} quoted other report data than it was given",
            code="platform-quote-foreign",
            expected=report_data.hex(),
            got=evidence.report.report_data.hex(),
            remedy="another process uses the device; let one node run here",
        )
    return quote


def device_error(
    what: str, path: Path, error: OSError, *, remedy: str
) -> PlatformError:
    """Returns the error for a device file that does not work."""
    return PlatformError(
        what,
        code="platform-device",
        expected=f"{path} to work",
        got=error.strerror or str(error),
        remedy=remedy,
    )
