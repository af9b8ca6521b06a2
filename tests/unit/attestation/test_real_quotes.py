"""Real quotes from real machines, where a folder of them lies beside the repository.

Without that folder these tests check nothing and pass: the generated vectors of the
other files are what the repository stands on.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.attestation.real_quotes import (
    QUOTES,
    RealQuote,
    judged_quotes,
    real_quotes,
)

from cloister.attestation.certificate_evidence import (
    CertificateEvidence,
    parse_certificate_evidence,
)
from cloister.attestation.claims import Claims, TdxMeasurements
from cloister.attestation.collateral import parse_collateral
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.pck_chain import verified_pck_chain
from cloister.attestation.quoting_enclave import check_qe_report
from cloister.attestation.reports import TdAttributes
from cloister.attestation.trust_root import intel_trust_root
from cloister.attestation.verify import verify_evidence
from cloister.errors import VerificationError

# What the folder's table calls the refusals of step 10.
REFUSALS = {"TCB_NOT_SUPPORTED": "tcb-not-supported", "Revoked": "tcb-revoked"}


def verified(real: RealQuote, *, at: datetime | None = None) -> Claims:
    when = real.at if at is None else at
    assert when is not None
    return verify_evidence(
        parse_evidence(real.quote),
        collateral=parse_collateral(real.collateral_json),
        root=intel_trust_root(),
        at=when,
    )


def test_every_real_quote_has_exactly_its_status_and_advisories() -> None:
    for real in judged_quotes():
        if real.status in REFUSALS:
            with pytest.raises(VerificationError) as refusal:
                verified(real)
            assert refusal.value.code == REFUSALS[real.status], real
            assert refusal.value.step == 10, real
            continue
        claims = verified(real)
        assert claims.tcb_status == real.status, real
        assert claims.advisory_ids == real.advisory_ids, real


def test_every_real_quote_says_what_the_table_says() -> None:
    for real in judged_quotes():
        if real.status in REFUSALS:
            continue
        claims = verified(real)
        assert (claims.quote_version, claims.tee) == (real.version, real.tee), real
        assert claims.fmspc == real.fmspc, real
        assert claims.debug == ("DEBUG" in real.flags), real
        assert claims.root_name == "hardware", real
        assert not claims.simulated, real
        assert real.at is not None
        assert real.at <= claims.not_after <= real.at + timedelta(days=31), real
        assert claims.tcb_evaluation_number >= 15, real
        if isinstance(claims.measurements, TdxMeasurements):
            service = claims.measurements.mrservicetd
            assert (service is not None) == (real.body_type == 3), real
            has_service = service is not None and service != "00" * 48
            assert has_service == ("MRSERVICETD!=0" in real.flags), real
            assert isinstance(claims.attributes, TdAttributes)
            off = "no SEPT_VE_DISABLE" in real.flags
            assert claims.attributes.sept_ve_disable != off, real


def test_every_real_quote_without_collateral_is_read() -> None:
    for real in real_quotes():
        if real.collateral is not None:
            continue
        if "cert data type 1" in real.status or real.name.endswith("sgx_v3_testroot"):
            with pytest.raises(VerificationError) as refusal:
                parse_evidence(real.quote)
            assert refusal.value.code == "certification-type-unsupported"
            continue
        evidence = parse_evidence(real.quote)
        assert (evidence.version, evidence.tee) == (real.version, real.tee), real


def test_every_real_quote_is_refused_out_of_its_collaterals_time() -> None:
    for real in judged_quotes():
        assert real.at is not None
        for away, late in ((-timedelta(days=60), False), (timedelta(days=60), True)):
            with pytest.raises(VerificationError) as refusal:
                verified(real, at=real.at + away)
            assert refusal.value.code.endswith("expired" if late else "not-yet-valid")


def test_every_real_quote_is_refused_with_another_platforms_collateral() -> None:
    judged = judged_quotes()
    for real in judged:
        for other in judged:
            if other.fmspc == real.fmspc and other.tee == real.tee:
                continue
            assert other.at is not None
            with pytest.raises(VerificationError) as refusal:
                verify_evidence(
                    parse_evidence(real.quote),
                    collateral=parse_collateral(other.collateral_json),
                    root=intel_trust_root(),
                    at=other.at,
                )
            # Younger than the other, or under another CA with other revocation lists;
            # else the TCB info is what tells them apart.
            assert refusal.value.step in {2, 3, 5}, (real, other)


def test_quotes_under_intels_test_root_are_refused() -> None:
    collaterals = [parse_collateral(real.collateral_json) for real in judged_quotes()]
    for path in sorted(QUOTES.glob("*/*_testroot/quote.bin")):
        with pytest.raises(VerificationError):
            verify_evidence(
                parse_evidence(path.read_bytes()),
                collateral=collaterals[0],
                root=intel_trust_root(),
                at=datetime(2025, 1, 1, tzinfo=UTC),
            )


def test_collateral_under_intels_test_root_is_refused_by_its_form() -> None:
    for path in sorted(QUOTES.glob("*/*_testroot/collateral.json")):
        with pytest.raises(VerificationError) as refusal:
            parse_collateral(path.read_bytes())
        # Version 2 in one, SVNs above 255 in the other.
        assert refusal.value.code == "collateral-malformed"


def test_one_flipped_bit_in_any_part_of_a_real_quote_is_refused() -> None:
    for name in ("automata/quotev3", "dcap-qvl/tdx_near", "go-tdx-guest/v5_sample"):
        for real in [real for real in judged_quotes() if real.name == name][:1]:
            collateral = parse_collateral(real.collateral_json)
            assert real.at is not None
            verified(real)
            quote = real.quote
            # A prime step visits every part of the quote and every bit of a byte.
            for position in range(0, len(quote), 13):
                flipped = bytearray(quote)
                flipped[position] ^= 1 << position % 8
                with pytest.raises(VerificationError):
                    verify_evidence(
                        parse_evidence(bytes(flipped)),
                        collateral=collateral,
                        root=intel_trust_root(),
                        at=real.at,
                    )


def test_one_flipped_bit_in_any_part_of_real_collateral_is_refused() -> None:
    for real in judged_quotes()[:2]:
        text = real.collateral_json
        collateral = parse_collateral(text)
        assert real.at is not None
        evidence = parse_evidence(real.quote)
        for position in range(0, len(text), 29):
            flipped = bytearray(text)
            flipped[position] ^= 1 << position % 8
            with suppress(VerificationError):
                read = parse_collateral(bytes(flipped))
                if read != collateral:
                    claims = verify_evidence(
                        evidence,
                        collateral=read,
                        root=intel_trust_root(),
                        at=real.at,
                    )
                    raise AssertionError(claims)
                # Hexadecimal has two spellings of one value, white space several.
                assert chr(text[position]).isalpha() or chr(text[position]).isspace()


def test_certificates_of_other_makers_are_read_and_bind_their_quotes() -> None:
    root = intel_trust_root()
    # The third maker's sample has claims of its own, and is refused for them.
    for path in sorted((QUOTES / "ra-tls-certs").glob("[gi]*.pem")):
        carried = parse_certificate_evidence(path.read_bytes())
        assert isinstance(carried, CertificateEvidence)
        folder = path.with_suffix("")
        assert carried.spki == (folder / "spki.der").read_bytes()
        assert carried.unverified_quote == (folder / "tagged_quote.bin").read_bytes()
        evidence = parse_evidence(carried.unverified_quote)
        carried.check_bound(evidence.report.report_data)
        with pytest.raises(VerificationError):
            carried.check_bound(bytes(64))
        # Without collateral of their platforms this much can be said.
        chain = verified_pck_chain(
            evidence.pck_chain_pem, root=root, at=datetime(2024, 6, 1, tzinfo=UTC)
        )
        check_qe_report(evidence, pck=chain.leaf)
