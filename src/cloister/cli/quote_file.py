"""Quotes as files: bare, or inside a certificate that says whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cloister.attestation.certificate_evidence import (
    is_certificate,
    parse_certificate_evidence,
)
from cloister.attestation.evidence import Evidence, parse_evidence
from cloister.errors import ConfigError

# Collateral is below 64 KB, quotes and certificates are smaller.
MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteFile:
    """The content of a file that should hold a quote; nothing of it is verified."""

    content: bytes

    @property
    def is_certificate(self) -> bool:
        """Whether the quote is inside a certificate."""
        return is_certificate(self.content)

    def parse(self) -> Evidence:
        """Returns the quote's parts.

        Raises:
            VerificationError: If there is none of an accepted form (step 1).
        """
        if not self.is_certificate:
            return parse_evidence(self.content)
        return parse_evidence(parse_certificate_evidence(self.content).unverified_quote)

    def check_bound(self, report_data: bytes) -> None:
        """Checks that the quote is for the certificate's key, if there is one.

        Raises:
            VerificationError: If it is for another key.
        """
        if self.is_certificate:
            parse_certificate_evidence(self.content).check_bound(report_data)


def read_quote_file(path: Path) -> QuoteFile:
    """Returns the content of the file at `path`.

    Raises:
        ConfigError: If it cannot be read.
    """
    return QuoteFile(content=read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """Returns a small file's content.

    Raises:
        ConfigError: If it cannot be read, or is too large to be meant.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}",
            code="file-unreadable",
            expected="a readable file",
            got=error.strerror or "an error",
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{path} is too large",
            code="file-too-large",
            expected=f"at most {MAX_FILE_BYTES} bytes",
        )
    return content
