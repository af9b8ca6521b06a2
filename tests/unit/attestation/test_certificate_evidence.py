from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

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
    is_certificate,
    parse_certificate_evidence,
)
from cloister.attestation.der import encode, encode_oid, encode_sequence
from cloister.attestation.evidence import parse_evidence
from cloister.errors import VerificationError

SHARED = Path(os.environ.get("CLOISTER_SHARED", Path(__file__).parents[4] / "shared"))
KEY = ec.derive_private_key(0x1234567, ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
QUOTE = b"\x03\x00 a quote"
AT = datetime(2026, 11, 20, tzinfo=UTC)


def key_claims(spki: bytes = SPKI, *, algorithm: int = 1, **more: bytes) -> bytes:
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


def legacy_certificate(quote: bytes) -> bytes:
    """A certificate as old Gramine's, whose identifier pyca refuses to write."""
    extension = encode_sequence(encode_oid(LEGACY_EVIDENCE_OID), encode(0x04, quote))
    body = encode_sequence(
        encode(0xA0, encode(0x02, b"\x02")),
        encode(0x02, b"\x01"),
        *[encode_sequence()] * 4,
        SPKI,
        encode(0xA3, encode_sequence(extension)),
    )
    return encode_sequence(body, encode_sequence(), encode(0x03, b"\x00"))


@pytest.mark.parametrize("algorithm", [1, 7, 8])
def test_the_quote_and_what_binds_it_come_out(algorithm: int) -> None:
    claims = key_claims(algorithm=algorithm, nonce=b"n")
    found = parse_certificate_evidence(certificate({EVIDENCE_OID: tagged(claims)}))
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
    found = parse_certificate_evidence(HONEST)
    for report_data in (bytes(64), found.expected_report_data[:-1] + b"\x01"):
        with pytest.raises(VerificationError) as refusal:
            found.check_bound(report_data)
        assert refusal.value.code == "certificate-binding"


def test_the_older_extension_is_bound_to_the_key_itself() -> None:
    found = parse_certificate_evidence(legacy_certificate(QUOTE))
    assert found.unverified_quote == QUOTE
    assert found.expected_report_data == hashlib.sha256(SPKI).digest() + bytes(32)


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
        # The key's hash twice: two readers could believe another one.
        b"\xa2" + key_claims()[1:] + key_claims()[1:],
    ],
)
def test_claims_that_do_not_name_the_key_are_refused(claims: bytes) -> None:
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


@given(
    position=st.integers(min_value=0, max_value=len(HONEST) - 1),
    value=st.integers(min_value=0, max_value=255),
)
@settings(max_examples=500, deadline=None, derandomize=True)
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
@settings(max_examples=500, deadline=None, derandomize=True)
def test_any_evidence_ends_in_our_error(value: bytes) -> None:
    why(certificate({EVIDENCE_OID: value}))
    why(certificate({EVIDENCE_OID: tagged(value)}))


def test_certificates_of_other_makers_are_read_and_bound() -> None:
    # Without that folder this checks nothing and passes.
    for path in sorted((SHARED / "quotes" / "ra-tls-certs").glob("*.pem")):
        found = parse_certificate_evidence(path.read_bytes())
        assert found.spki == (path.with_suffix("") / "spki.der").read_bytes()
        evidence = parse_evidence(found.unverified_quote)
        found.check_bound(evidence.report.report_data)
