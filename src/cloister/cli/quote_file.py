"""Quotes as files: bare, or inside a certificate that says whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloister.attestation.certificate_acceptance import accepted_evidence
from cloister.attestation.certificate_evidence import (
    CertificateEvidence,
    LegacyCertificate,
    is_certificate,
    parse_certificate_evidence,
)
from cloister.attestation.evidence import Evidence, parse_evidence
from cloister.attestation.policy import Policy
from cloister.errors import ConfigError

Layout = Literal["interoperable", "legacy"]

# Collateral is below 64 KB, quotes and certificates are smaller.
MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownQuote:
    """A quote to be looked at, whatever a policy would say of how it is carried.

    Attributes:
        evidence: The quote's parts, not verified.
        layout: How its certificate carries it; None for a bare quote.
    """

    evidence: Evidence
    layout: Layout | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentedQuote:
    """A quote that may be verified, and whose it must then be.

    Attributes:
        evidence: The quote's parts, not verified.
        layout: How its certificate carries it; None for a bare quote.
        certificate: What binds it to its certificate's key; None for a bare quote.
    """

    evidence: Evidence
    layout: Layout | None
    certificate: CertificateEvidence | None

    def check_bound(self, report_data: bytes) -> None:
        """Checks that the quote is for the certificate's key, if there is one.

        Raises:
            VerificationError: If it is for another key.
        """
        if self.certificate is not None:
            self.certificate.check_bound(report_data)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteFile:
    """The content of a file that should hold a quote; nothing of it is verified."""

    content: bytes

    def shown(self) -> ShownQuote:
        """Returns the quote to be looked at, also a legacy certificate's.

        Raises:
            VerificationError: If there is none of a known form (step 1).
        """
        if not is_certificate(self.content):
            return ShownQuote(evidence=parse_evidence(self.content), layout=None)
        carried = parse_certificate_evidence(self.content)
        quote = (
            carried.unaccepted_quote
            if isinstance(carried, LegacyCertificate)
            else carried.unverified_quote
        )
        return ShownQuote(evidence=parse_evidence(quote), layout=_layout(carried))

    def presented_under(self, policy: Policy | None) -> PresentedQuote:
        """Returns the quote to be verified, if the policy lets one so carried count.

        Raises:
            VerificationError: If there is none of a known form, or it is a legacy
                certificate's and the policy does not accept such ones (step 1).
        """
        if not is_certificate(self.content):
            return PresentedQuote(
                evidence=parse_evidence(self.content), layout=None, certificate=None
            )
        carried = parse_certificate_evidence(self.content)
        accepted = accepted_evidence(carried, policy)
        return PresentedQuote(
            evidence=parse_evidence(accepted.unverified_quote),
            layout=_layout(carried),
            certificate=accepted,
        )


def _layout(carried: CertificateEvidence | LegacyCertificate) -> Layout:
    return "legacy" if isinstance(carried, LegacyCertificate) else "interoperable"


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
