"""Real quotes from real machines, where a folder of them lies beside the repository.

Without that folder these tests check nothing and pass: the generated vectors of the
other files are what the repository stands on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloister.attestation.certificates import parse_certificate
from cloister.attestation.claims import Claims
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.pem import split_pem_chain
from cloister.attestation.trust_root import intel_trust_root
from cloister.attestation.verify import verify_evidence
from cloister.errors import VerificationError

QUOTES = Path(__file__).parents[4] / "shared" / "quotes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    name: str
    version: str
    tee: str
    fmspc: str
    at: datetime | None
    debug: bool

    @property
    def quote(self) -> bytes:
        return (QUOTES / self.name / "quote.bin").read_bytes()

    @property
    def when(self) -> datetime:
        """The listed time, or, where none is listed, a day into the PCK's validity."""
        if self.at is not None:
            return self.at
        leaf, _, _ = split_pem_chain(parse_evidence(self.quote).pck_chain_pem, step=2)
        return parse_certificate(leaf, step=2).not_before + timedelta(days=1)


def vectors() -> list[Vector]:
    """Rows of the folder's table; those under Intel's test root are another matter."""
    table = QUOTES / "README.md"
    lines = table.read_text().splitlines() if table.exists() else []
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in lines]
    return [
        Vector(
            name=row[0],
            version=row[2],
            tee=row[3].lower(),
            fmspc=row[4],
            at=datetime.fromtimestamp(int(listed[1]), tz=UTC)
            if (listed := re.search(r"@ (\d+)", row[5]))
            else None,
            debug="DEBUG" in row[6],
        )
        for row in rows
        if len(row) > 8 and (QUOTES / row[0] / "quote.bin").is_file()
        if row[0] and "testroot" not in row[0]
    ]


def verified(vector: Vector) -> Claims:
    return verify_evidence(
        parse_evidence(vector.quote), root=intel_trust_root(), at=vector.when
    )


def test_every_real_quote_of_an_accepted_form_is_genuine() -> None:
    for vector in vectors():
        if vector.version not in {"v3", "v4"}:
            continue
        claims = verified(vector)
        assert claims.tee == vector.tee, vector
        assert claims.fmspc == vector.fmspc, vector
        assert claims.debug == vector.debug, vector
        assert claims.root_name == "hardware", vector
        assert not claims.simulated, vector
        assert claims.not_after > vector.when, vector


def test_every_real_quote_of_version_5_is_refused_by_name() -> None:
    for vector in vectors():
        if vector.version.startswith("v5"):
            with pytest.raises(VerificationError) as refusal:
                parse_evidence(vector.quote)
            assert refusal.value.code == "quote-version-unsupported", vector


def test_every_real_quote_is_refused_before_its_certificates_began() -> None:
    for vector in vectors():
        if vector.version in {"v3", "v4"}:
            with pytest.raises(VerificationError) as refusal:
                verify_evidence(
                    parse_evidence(vector.quote),
                    root=intel_trust_root(),
                    at=datetime(2017, 1, 1, tzinfo=UTC),
                )
            assert refusal.value.code == "certificate-not-yet-valid", vector


def test_quotes_under_intels_test_root_are_refused() -> None:
    for path in sorted(QUOTES.glob("*/*_testroot/quote.bin")):
        with pytest.raises(VerificationError):
            verify_evidence(
                parse_evidence(path.read_bytes()),
                root=intel_trust_root(),
                at=datetime(2025, 1, 1, tzinfo=UTC),
            )


def test_one_flipped_bit_in_any_part_of_a_real_quote_is_refused() -> None:
    for vector in vectors()[:2]:
        quote = vector.quote
        verified(vector)
        # A prime step visits every part of the quote and every bit of a byte.
        for position in range(0, len(quote), 13):
            flipped = bytearray(quote)
            flipped[position] ^= 1 << position % 8
            with pytest.raises(VerificationError):
                verify_evidence(
                    parse_evidence(bytes(flipped)),
                    root=intel_trust_root(),
                    at=vector.when,
                )
