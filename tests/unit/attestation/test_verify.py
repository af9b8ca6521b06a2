from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.claims import Claims, SgxMeasurements, TdxMeasurements
from cloister.attestation.collateral import Collateral
from cloister.attestation.evidence import Evidence, parse_evidence
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated import profile
from cloister.attestation.platforms.simulated.collateral import COLLATERAL_LIFE
from cloister.attestation.platforms.simulated.keyfiles import read_key
from cloister.attestation.platforms.simulated.platform import (
    SimulatedPlatform,
    load_simulated_platform,
)
from cloister.attestation.platforms.simulated.quotes import (
    qe_report_body,
    raw_public_key,
    raw_signature,
)
from cloister.attestation.platforms.simulated.root import PCK_KEY_FILE, SimulatedRoot
from cloister.attestation.reports import Tee
from cloister.attestation.verify import verify_evidence
from cloister.errors import VerificationError

TEES: tuple[Tee, ...] = ("sgx", "tdx")


Refused = Callable[[Evidence], tuple[str, int | None]]


@pytest.fixture
def refused(
    collaterals: Mapping[Tee, Collateral], root: SimulatedRoot, at: datetime
) -> Refused:
    def refusal_of(evidence: Evidence) -> tuple[str, int | None]:
        with pytest.raises(VerificationError) as refusal:
            verify_evidence(
                evidence,
                collateral=collaterals[evidence.tee],
                root=root.trust_root,
                at=at,
            )
        return refusal.value.code, refusal.value.step

    return refusal_of


Genuine = Callable[[Tee, bytes], Claims]


@pytest.fixture(scope="session")
def genuine(
    collaterals: Mapping[Tee, Collateral], root: SimulatedRoot, at: datetime
) -> Genuine:
    trust_root = root.trust_root
    return lambda tee, quote: verify_evidence(
        parse_evidence(quote), collateral=collaterals[tee], root=trust_root, at=at
    )


@pytest.fixture(params=TEES)
def evidence(request: pytest.FixtureRequest, quotes: Mapping[Tee, bytes]) -> Evidence:
    return parse_evidence(quotes[request.param])


def test_sgx_claims_say_what_was_measured(
    claims: Mapping[Tee, Claims], measurement: Measurement
) -> None:
    measured = claims["sgx"].measurements
    assert isinstance(measured, SgxMeasurements)
    assert measured.mr_enclave == measurement.mr_enclave.hex()
    assert measured.mr_signer == measurement.mr_signer.hex()
    assert (measured.isv_prod_id, measured.isv_svn) == (1, 1)
    assert claims["sgx"].tee == "sgx"
    assert claims["sgx"].quote_version == 3


def test_tdx_claims_say_what_was_measured(
    claims: Mapping[Tee, Claims], measurement: Measurement
) -> None:
    measured = claims["tdx"].measurements
    assert isinstance(measured, TdxMeasurements)
    assert measured.mrtd == measurement.mrtd.hex()
    assert measured.rtmr0 == measurement.rtmr0.hex()
    assert measured.rtmr1 == measurement.rtmr1.hex()
    assert measured.rtmr2 == measurement.rtmr2.hex()
    assert measured.rtmr3 == bytes(48).hex()
    assert claims["tdx"].tee == "tdx"
    assert claims["tdx"].quote_version == 4


@pytest.mark.parametrize("tee", TEES)
def test_claims_say_where_and_under_which_root(
    claims: Mapping[Tee, Claims], root: SimulatedRoot, at: datetime, tee: Tee
) -> None:
    made = claims[tee]
    assert made.simulated
    assert made.root_name == root.trust_root.name
    assert made.fmspc == profile.FMSPC.hex().upper()
    assert len(made.ppid) == 32
    assert made.platform_instance_id is not None
    assert made.sgx_type == "scalable"
    assert made.report_data == bytes(range(64))
    assert not made.debug
    assert made.not_after == at + COLLATERAL_LIFE
    assert made.not_after.utcoffset() == timedelta(0)
    assert made.verified_at == at


@pytest.mark.parametrize("tee", TEES)
def test_claims_say_how_current_the_platform_is(
    claims: Mapping[Tee, Claims], at: datetime, tee: Tee
) -> None:
    made = claims[tee]
    assert made.tcb_status == "UpToDate"
    assert made.tcb_date == at
    assert made.advisory_ids == ()
    assert made.tcb_evaluation_number == profile.TCB_EVALUATION_NUMBER
    assert (made.dynamic_platform, made.cached_keys, made.smt_enabled) == (
        False,
        False,
        True,
    )


def test_a_time_without_zone_is_a_bug_and_no_refusal(
    evidence: Evidence,
    collaterals: Mapping[Tee, Collateral],
    root: SimulatedRoot,
    at: datetime,
) -> None:
    with pytest.raises(ValueError, match="aware"):
        verify_evidence(
            evidence,
            collateral=collaterals[evidence.tee],
            root=root.trust_root,
            at=at.replace(tzinfo=None),
        )


def test_an_attestation_key_of_ones_own_is_refused(
    evidence: Evidence, refused: Refused
) -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    forged = dataclasses.replace(
        evidence,
        attestation_key=raw_public_key(own),
        signature=raw_signature(own, evidence.signed_bytes),
    )
    assert refused(forged) == ("qe-report-binding", 7)


def test_a_qe_report_of_ones_own_is_refused(
    evidence: Evidence, refused: Refused
) -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    report = qe_report_body(tee=evidence.tee, attestation_key=raw_public_key(own))
    forged = dataclasses.replace(
        evidence,
        qe_report_bytes=report,
        qe_signature=raw_signature(own, report),
        attestation_key=raw_public_key(own),
        signature=raw_signature(own, evidence.signed_bytes),
    )
    assert refused(forged) == ("qe-report-signature", 7)


@pytest.mark.parametrize("tee", TEES)
def test_anything_after_the_binding_is_refused_even_if_the_pck_signed_it(
    quotes: Mapping[Tee, bytes],
    platform_directory: Path,
    refused: Refused,
    tee: Tee,
) -> None:
    evidence = parse_evidence(quotes[tee])
    report_data = evidence.qe_report.report_data[:-1] + b"\x01"
    report = evidence.qe_report_bytes[:320] + report_data
    forged = dataclasses.replace(
        evidence,
        qe_report=dataclasses.replace(evidence.qe_report, report_data=report_data),
        qe_report_bytes=report,
        qe_signature=raw_signature(read_key(platform_directory / PCK_KEY_FILE), report),
    )
    assert refused(forged) == ("qe-report-binding", 7)


def test_other_qe_authentication_data_is_refused(
    evidence: Evidence, refused: Refused
) -> None:
    for auth in (b"", evidence.qe_auth + b"\0", bytes(32)):
        forged = dataclasses.replace(evidence, qe_auth=auth)
        assert refused(forged) == ("qe-report-binding", 7)


def test_another_body_under_an_old_signature_is_refused(
    evidence: Evidence, refused: Refused
) -> None:
    forged = dataclasses.replace(
        evidence, signed_bytes=evidence.signed_bytes[:-1] + b"\xff"
    )
    assert refused(forged) == ("quote-signature", 9)


@pytest.mark.parametrize(
    "signature", [bytes(64), b"\xff" * 64, bytes(63) + b"\x01"], ids=["0", "ff", "1"]
)
def test_degenerate_signatures_are_refused(
    evidence: Evidence, refused: Refused, signature: bytes
) -> None:
    forged = dataclasses.replace(evidence, signature=signature)
    assert refused(forged) == ("quote-signature", 9)
    forged = dataclasses.replace(evidence, qe_signature=signature)
    assert refused(forged) == ("qe-report-signature", 7)


@pytest.mark.parametrize("tee", TEES)
def test_an_attestation_key_off_the_curve_is_refused_even_if_it_is_bound(
    quotes: Mapping[Tee, bytes],
    platform_directory: Path,
    refused: Refused,
    tee: Tee,
) -> None:
    evidence = parse_evidence(quotes[tee])
    key = b"\x01" * 64
    report = qe_report_body(tee=tee, attestation_key=key)
    forged = dataclasses.replace(
        evidence,
        attestation_key=key,
        qe_report=dataclasses.replace(evidence.qe_report, report_data=report[320:]),
        qe_report_bytes=report,
        qe_signature=raw_signature(read_key(platform_directory / PCK_KEY_FILE), report),
    )
    assert refused(forged) == ("attestation-key", 9)


def test_certification_of_another_platform_is_refused(
    evidence: Evidence,
    platforms: Mapping[Tee, SimulatedPlatform],
    root: SimulatedRoot,
    at: datetime,
    refused: Refused,
    tmp_path: Path,
) -> None:
    root.issue_platform(tmp_path / "bob", name="bob", at=at)
    bob = load_simulated_platform(
        tmp_path / "bob",
        tee=evidence.tee,
        measurement=platforms[evidence.tee].measurement,
    )
    other = parse_evidence(bob.quote(bytes(64)))
    swapped_chain = dataclasses.replace(evidence, pck_chain_pem=other.pck_chain_pem)
    assert refused(swapped_chain) == ("qe-report-signature", 7)
    swapped_body = dataclasses.replace(
        evidence, signed_bytes=other.signed_bytes, report=other.report
    )
    assert refused(swapped_body) == ("quote-signature", 9)


@pytest.mark.parametrize("tee", TEES)
def test_one_flipped_bit_in_any_byte_of_a_quote_is_refused(
    quotes: Mapping[Tee, bytes], genuine: Genuine, tee: Tee
) -> None:
    positions = list(range(len(quotes[tee])))
    if tee == "tdx":
        # The certificates are the very bytes that the SGX quote has.
        chain = parse_evidence(quotes["sgx"]).pck_chain_pem
        begin = quotes[tee].index(chain)
        del positions[begin : begin + len(chain)]
    for position in positions:
        quote = bytearray(quotes[tee])
        quote[position] ^= 1 << position % 8
        with pytest.raises(VerificationError):
            genuine(tee, bytes(quote))


@given(
    tee=st.sampled_from(TEES),
    position=st.integers(min_value=0, max_value=10_000),
    bit=st.integers(min_value=0, max_value=7),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_flipped_bit_of_a_quote_is_refused(
    quotes: Mapping[Tee, bytes],
    genuine: Genuine,
    tee: Tee,
    position: int,
    bit: int,
) -> None:
    quote = bytearray(quotes[tee])
    quote[position % len(quote)] ^= 1 << bit
    with pytest.raises(VerificationError):
        genuine(tee, bytes(quote))


@given(
    tee=st.sampled_from(TEES),
    edit=st.tuples(
        st.integers(min_value=0, max_value=10_000),
        st.integers(min_value=0, max_value=200),
        st.binary(max_size=40),
    ),
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_cut_or_inserted_bytes_are_refused(
    quotes: Mapping[Tee, bytes],
    genuine: Genuine,
    tee: Tee,
    edit: tuple[int, int, bytes],
) -> None:
    start, removed, inserted = edit
    honest = quotes[tee]
    cut = start % len(honest)
    quote = honest[:cut] + inserted + honest[cut + removed :]
    if quote.rstrip(b"\0") == honest.rstrip(b"\0"):
        return
    with pytest.raises(VerificationError):
        genuine(tee, quote)
