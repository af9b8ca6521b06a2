from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.certificate_evidence import (
    EVIDENCE_OID,
    EVIDENCE_TAG,
    LEGACY_EVIDENCE_OID,
    CertificateEvidence,
    LegacyCertificate,
    is_certificate,
    parse_certificate_evidence,
    report_data_over,
)
from cloister.attestation.der import encode, encode_oid, encode_sequence
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.pem import split_pem
from cloister.errors import VerificationError

SHARED = Path(os.environ.get("CLOISTER_SHARED", Path(__file__).parents[4] / "shared"))
CERTIFICATES = SHARED / "quotes" / "ra-tls-certs"
# rats-tls writes two claims of its own into its sample, key_0 and key_1.
WITH_UNKNOWN_CLAIMS = "rats-tls-cert"
KEY = ec.derive_private_key(0x1234567, ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
QUOTE = b"\x03\x00 a quote"
AT = datetime(2026, 11, 20, tzinfo=UTC)


def key_claims(spki: bytes = SPKI, *, algorithm: int = 1, **more: object) -> bytes:
    digest = {1: hashlib.sha256, 7: hashlib.sha384, 8: hashlib.sha512}[algorithm]
    named = cbor2.dumps([algorithm, digest(spki).digest()])
    return cbor2.dumps({"pubkey-hash": named, **more})


def tagged(claims: bytes, *, tag: int = EVIDENCE_TAG) -> bytes:
    return cbor2.dumps(cbor2.CBORTag(tag, [QUOTE, claims]))


def certificate(extensions: dict[str, bytes], *, critical: bool = False) -> bytes:
    """A self-signed certificate with these extensions."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "RATLS")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(AT)
        .not_valid_after(AT)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    for oid, value in extensions.items():
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value),
            critical=critical,
        )
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


HONEST = certificate({EVIDENCE_OID: tagged(key_claims())})


def why(unverified: bytes) -> str:
    with pytest.raises(VerificationError) as refusal:
        parse_certificate_evidence(unverified)
    assert refusal.value.code == "certificate-evidence"
    assert refusal.value.step == 1
    return refusal.value.what


def evidence_of(unverified: bytes) -> CertificateEvidence:
    found = parse_certificate_evidence(unverified)
    assert isinstance(found, CertificateEvidence)
    return found


def bare_certificate(extensions: dict[str, bytes]) -> bytes:
    """A certificate with identifiers that pyca refuses to write, as old Gramine's."""
    written = [
        encode_sequence(encode_oid(oid), encode(0x04, value))
        for oid, value in extensions.items()
    ]
    body = encode_sequence(
        encode(0xA0, encode(0x02, b"\x02")),
        encode(0x02, b"\x01"),
        *[encode_sequence()] * 4,
        SPKI,
        encode(0xA3, encode_sequence(*written)),
    )
    return encode_sequence(body, encode_sequence(), encode(0x03, b"\x00"))


@pytest.mark.parametrize("algorithm", [1, 7, 8])
def test_the_quote_and_what_binds_it_come_out(algorithm: int) -> None:
    claims = key_claims(algorithm=algorithm, nonce=b"n")
    found = evidence_of(certificate({EVIDENCE_OID: tagged(claims)}))
    assert found.spki == SPKI
    assert found.unverified_quote == QUOTE
    assert found.expected_report_data == hashlib.sha256(claims).digest() + bytes(32)
    found.check_bound(found.expected_report_data)


def test_pem_is_read_as_der() -> None:
    pem = x509.load_der_x509_certificate(HONEST).public_bytes(Encoding.PEM)
    assert is_certificate(pem)
    assert is_certificate(HONEST)
    assert not is_certificate(QUOTE)
    assert parse_certificate_evidence(pem) == parse_certificate_evidence(HONEST)
    why(b"text before it\n" + pem)
    why(pem + pem)


def test_a_quote_for_another_key_is_not_bound() -> None:
    found = evidence_of(HONEST)
    for report_data in (bytes(64), found.expected_report_data[:-1] + b"\x01"):
        with pytest.raises(VerificationError) as refusal:
            found.check_bound(report_data)
        assert refusal.value.code == "certificate-binding"


def test_a_legacy_quote_is_not_evidence() -> None:
    found = parse_certificate_evidence(bare_certificate({LEGACY_EVIDENCE_OID: QUOTE}))
    assert found == LegacyCertificate(spki=SPKI, unaccepted_quote=QUOTE)
    # What takes evidence to verify it finds nothing here by its name.
    for name in ("unverified_quote", "expected_report_data", "check_bound"):
        assert not hasattr(found, name)


@pytest.mark.parametrize("first", [EVIDENCE_OID, LEGACY_EVIDENCE_OID])
@pytest.mark.parametrize("legacy", [QUOTE, b"", b"\x03\x00 another quote"])
def test_beside_evidence_the_legacy_quote_is_not_looked_at(
    first: str, legacy: bytes
) -> None:
    both = {EVIDENCE_OID: tagged(key_claims()), LEGACY_EVIDENCE_OID: legacy}
    ordered = {first: both[first], **both}
    assert parse_certificate_evidence(bare_certificate(ordered)) == evidence_of(HONEST)


@pytest.mark.parametrize(
    "evidence",
    [b"", QUOTE, tagged(cbor2.dumps({})), tagged(key_claims(SPKI[:-1] + b"x"))],
)
def test_bad_evidence_does_not_fall_back_to_the_legacy_quote(evidence: bytes) -> None:
    both = {LEGACY_EVIDENCE_OID: QUOTE, EVIDENCE_OID: evidence}
    why(bare_certificate(both))


def test_claims_that_name_another_key_are_refused() -> None:
    other = certificate({EVIDENCE_OID: tagged(key_claims(SPKI[:-1] + b"x"))})
    assert "another key" in why(other)


@pytest.mark.parametrize(
    "claims",
    [
        b"",
        cbor2.dumps({}),
        cbor2.dumps({"nonce": b"n"}),
        cbor2.dumps([]),
        cbor2.dumps({"pubkey-hash": [1, hashlib.sha256(SPKI).digest()]}),
        cbor2.dumps({"pubkey-hash": cbor2.dumps([1])}),
        cbor2.dumps({"pubkey-hash": cbor2.dumps([2, bytes(16)])}),
        cbor2.dumps({"pubkey-hash": b"\xff"}),
        cbor2.dumps({"pubkey-hash": None}),
        # A Boolean equals the number of SHA-256 for Python, not for CBOR.
        cbor2.dumps(
            {"pubkey-hash": cbor2.dumps([True, hashlib.sha256(SPKI).digest()])}
        ),
        cbor2.dumps(
            {"pubkey-hash": cbor2.dumps([1, hashlib.sha256(SPKI).hexdigest()])}
        ),
        cbor2.dumps({b"pubkey-hash": cbor2.dumps([1, hashlib.sha256(SPKI).digest()])}),
    ],
)
def test_claims_that_do_not_name_the_key_are_refused(claims: bytes) -> None:
    why(certificate({EVIDENCE_OID: tagged(claims)}))


@pytest.mark.parametrize(
    "more",
    [
        {"nonces": b"n"},
        {"Nonce": b"n"},
        {"": b""},
        {"nonce": b"n", "key_0": b"value_0"},
        {"client-key-share-hash": b"x"},
        {"pubkey-hash\0": b"x"},
    ],
)
def test_unknown_claims_are_refused_by_name(more: dict[str, Any]) -> None:
    (unknown,) = more.keys() - {"nonce"}
    with pytest.raises(VerificationError) as refusal:
        parse_certificate_evidence(
            certificate({EVIDENCE_OID: tagged(key_claims(**more))})
        )
    assert "unknown claims" in refusal.value.what
    assert refusal.value.got == repr(unknown)


@pytest.mark.parametrize("key", [0, 1.5, b"nonce", None, True, (1, "nonce")])
def test_claims_whose_names_are_no_text_are_refused(key: object) -> None:
    named = cbor2.loads(key_claims())
    claims = cbor2.dumps({**named, key: b"n"})
    assert "unknown claims" in why(certificate({EVIDENCE_OID: tagged(claims)}))


@pytest.mark.parametrize("nonce", ["n", 1, None, True, [b"n"], {"n": b"n"}])
def test_a_nonce_that_is_no_byte_string_is_refused(nonce: object) -> None:
    claims = key_claims(nonce=nonce)
    assert "nonce" in why(certificate({EVIDENCE_OID: tagged(claims)}))


# Two readers could believe another one of two; whether they are equal is no matter.
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (key_claims(), key_claims()),
        (key_claims(), key_claims(SPKI[:-1] + b"x")),
        (key_claims(SPKI[:-1] + b"x"), key_claims()),
        (key_claims(), key_claims(algorithm=8)),
    ],
)
def test_the_keys_hash_twice_is_refused(first: bytes, second: bytes) -> None:
    why(certificate({EVIDENCE_OID: tagged(b"\xa2" + first[1:] + second[1:])}))


@pytest.mark.parametrize("second", [b"n", b"m"])
def test_the_nonce_twice_is_refused(second: bytes) -> None:
    nonces = [cbor2.dumps({"nonce": it})[1:] for it in (b"n", second)]
    claims = b"\xa3" + key_claims()[1:] + b"".join(nonces)
    why(certificate({EVIDENCE_OID: tagged(claims)}))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        QUOTE,
        tagged(key_claims(), tag=60_001),
        cbor2.dumps([QUOTE, key_claims()]),
        cbor2.dumps(cbor2.CBORTag(EVIDENCE_TAG, [QUOTE])),
        tagged(key_claims()) + b"\0",
        # A length in more bytes than it needs.
        tagged(key_claims()).replace(b"\x82", b"\x98\x02", 1),
    ],
)
def test_evidence_of_another_form_is_refused(value: bytes) -> None:
    why(certificate({EVIDENCE_OID: value}))


def test_a_certificate_without_evidence_is_refused() -> None:
    assert "no quote" in why(certificate({}))


def test_an_unknown_critical_extension_is_refused() -> None:
    evidence = {EVIDENCE_OID: tagged(key_claims())}
    assert "critical" in why(certificate(evidence, critical=True))


def test_what_is_too_large_is_refused_before_it_is_read() -> None:
    assert "too large" in why(b"\x30" + bytes(70_000))
    assert "too large" in why(b"-----BEGIN CERTIFICATE-----" + bytes(140_000))


@given(cut=st.integers(min_value=0, max_value=len(HONEST) - 1))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_cut_certificate_is_refused(cut: int) -> None:
    why(HONEST[:cut])


def test_any_flipped_bit_is_refused_or_leaves_the_key_as_it_was() -> None:
    bound = evidence_of(HONEST).expected_report_data
    for found in parsed_with_one_bit_flipped(HONEST):
        # Without its evidence it has none: no bit makes a legacy certificate of it.
        assert isinstance(found, CertificateEvidence)
        assert found.spki == SPKI
        if found.expected_report_data != bound:
            with pytest.raises(VerificationError):
                found.check_bound(bound)


def test_a_flipped_bit_makes_at_most_a_legacy_certificate_of_one_with_both() -> None:
    both = {EVIDENCE_OID: tagged(key_claims()), LEGACY_EVIDENCE_OID: QUOTE}
    stripped = [
        found
        for found in parsed_with_one_bit_flipped(bare_certificate(both))
        if not isinstance(found, CertificateEvidence)
    ]
    # The bits of the identifier; that such a thing counts nowhere unasked is the rule
    # of `certificate_acceptance`.
    assert stripped
    assert all(found.unaccepted_quote == QUOTE for found in stripped)


def test_a_flipped_bit_never_makes_evidence_of_a_legacy_certificate() -> None:
    legacy = bare_certificate({LEGACY_EVIDENCE_OID: tagged(key_claims())})
    for found in parsed_with_one_bit_flipped(legacy):
        assert isinstance(found, LegacyCertificate)


def parsed_with_one_bit_flipped(
    honest: bytes, *, every: int = 1
) -> list[CertificateEvidence | LegacyCertificate]:
    """Flips bits, each alone, and returns what is still read, if anything is."""
    found = []
    for position in range(0, 8 * len(honest), every):
        flipped = bytearray(honest)
        flipped[position // 8] ^= 1 << position % 8
        with suppress(VerificationError):
            found.append(parse_certificate_evidence(bytes(flipped)))
    return found


@given(
    position=st.integers(min_value=0, max_value=len(HONEST) - 1),
    value=st.integers(min_value=0, max_value=255),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_changed_byte_is_refused_or_leaves_key_and_quote_as_they_were(
    position: int, value: int
) -> None:
    changed = bytearray(HONEST)
    changed[position] = value
    try:
        found = parse_certificate_evidence(bytes(changed))
    except VerificationError:
        return
    # Names, dates and the signature are not looked at; a changed quote is found out
    # when it is verified, changed claims when the quote is compared with them.
    assert found.spki == SPKI


@given(st.binary(max_size=80))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_evidence_ends_in_our_error(value: bytes) -> None:
    why(certificate({EVIDENCE_OID: value}))
    why(certificate({EVIDENCE_OID: tagged(value)}))


def test_certificates_of_other_makers_are_read_and_bound() -> None:
    # Without that folder this checks nothing and passes.
    for path in sorted(CERTIFICATES.glob("*.pem")):
        if path.stem == WITH_UNKNOWN_CLAIMS:
            assert "unknown claims" in why(path.read_bytes())
            continue
        found = evidence_of(path.read_bytes())
        assert found.spki == (path.with_suffix("") / "spki.der").read_bytes()
        evidence = parse_evidence(found.unverified_quote)
        found.check_bound(evidence.report.report_data)
        # 23 is prime to 8: every bit of a byte has its turn.
        (der,) = split_pem(path.read_bytes(), names=("certificate",), step=1)
        for changed in parsed_with_one_bit_flipped(der, every=23):
            assert changed.spki == found.spki
            # Gramine's has both; one without its evidence counts nowhere unasked.
            if isinstance(changed, LegacyCertificate):
                assert path.stem == "gramine-cert"


def test_gramines_certificate_counts_by_its_evidence_and_not_by_its_legacy_quote() -> (
    None
):
    # Without that folder this checks nothing and passes.
    for path in sorted(CERTIFICATES.glob("gramine-cert.pem")):
        (der,) = split_pem(path.read_bytes(), names=("certificate",), step=1)
        found = evidence_of(der)
        # Without the newer extension, as a man in the middle could have it.
        stripped = parse_certificate_evidence(
            der.replace(encode_oid(EVIDENCE_OID), encode_oid("2.23.133.5.4.8"))
        )
        assert isinstance(stripped, LegacyCertificate)
        assert stripped.spki == found.spki
        assert stripped.unaccepted_quote != found.unverified_quote
        legacy = parse_evidence(stripped.unaccepted_quote)
        assert legacy.report.report_data == report_data_over(found.spki)
