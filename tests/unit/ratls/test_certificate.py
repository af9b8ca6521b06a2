from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from tests.support.federation_in_memory import START, Federation

from cloister.attestation.evidence import parse_evidence
from cloister.errors import AppraisalError, VerificationError
from cloister.ratls.certificate import (
    BACKDATED,
    CLOCK_TOLERANCE,
    EVIDENCE_OID,
    EVIDENCE_TAG,
    MAX_CERTIFICATE_BYTES,
    SERVER_NAME,
    SIGNATURES_ONLY,
    EvidenceCertificate,
    make_certificate,
    parse_certificate,
)
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.identity import new_identity, spki_of
from cloister.ratls.node import Node

LIFE = timedelta(days=1)
STRANGER = new_identity()

SIGNING_OTHERS = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)

# Damaged certificates make the library complain of serial numbers below one.
pytestmark = pytest.mark.filterwarnings(
    "ignore::cryptography.utils.CryptographyDeprecationWarning"
)


@pytest.fixture(scope="module")
def server(federation: Federation) -> Node:
    return federation.node("aggregator")


@pytest.fixture(scope="module")
def der(server: Node) -> bytes:
    return make_certificate(server.identity, server.platform, at=START, life=LIFE)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a certificate is made of; each attack changes one thing."""

    subject_key: ec.EllipticCurvePrivateKey
    signing_key: ec.EllipticCurvePrivateKey
    evidence: bytes
    ca: bool | None = False
    usages: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.SERVER_AUTH,)
    key_usage: x509.KeyUsage | None = SIGNATURES_ONLY
    key_usage_critical: bool = True
    evidence_critical: bool = False
    evidence_oids: tuple[x509.ObjectIdentifier, ...] = (EVIDENCE_OID,)
    issuer: str = SERVER_NAME

    def sign(self) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(SERVER_NAME))
            .issuer_name(_name(self.issuer))
            .public_key(self.subject_key.public_key())
            .serial_number(1)
            .not_valid_before(START)
            .not_valid_after(START + LIFE)
        )
        if self.ca is not None:
            builder = builder.add_extension(
                x509.BasicConstraints(ca=self.ca, path_length=None), critical=True
            )
        if self.usages:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage(self.usages), critical=True
            )
        if self.key_usage is not None:
            builder = builder.add_extension(
                self.key_usage, critical=self.key_usage_critical
            )
        for oid in self.evidence_oids:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(oid, self.evidence),
                critical=self.evidence_critical,
            )
        return builder.sign(self.signing_key, hashes.SHA256()).public_bytes(
            Encoding.DER
        )


@pytest.fixture(scope="module")
def draft(server: Node, der: bytes) -> Draft:
    key = server.identity.tls_key
    return Draft(subject_key=key, signing_key=key, evidence=evidence_of(der))


def evidence_of(der: bytes) -> bytes:
    extension = x509.load_der_x509_certificate(der).extensions.get_extension_for_oid(
        EVIDENCE_OID
    )
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    return extension.value.value


def tagged(tag: int, value: object) -> bytes:
    return cbor2.dumps(cbor2.CBORTag(tag, value))


def code_of(der: bytes) -> str:
    with pytest.raises(VerificationError) as caught:
        parse_certificate(der, at=START)
    return caught.value.code


def test_a_certificate_reads_as_made(server: Node, der: bytes) -> None:
    read = parse_certificate(der, at=START)
    assert read.spki == server.identity.tls_spki
    assert read.der == der
    report = parse_evidence(read.unverified_quote).report
    assert report.report_data == read.expected_report_data
    assert read.expected_report_data[32:] == bytes(32)


def test_its_evidence_is_accepted_by_a_client(
    federation: Federation, der: bytes
) -> None:
    pinned = ClientEnrolment(federation.node("alice")).pin(der)
    assert isinstance(pinned, EvidenceCertificate)


def test_a_draft_without_changes_is_a_good_certificate(draft: Draft) -> None:
    key = draft.subject_key.public_key()
    assert parse_certificate(draft.sign(), at=START).spki == spki_of(key)


def test_every_flipped_bit_of_a_certificate_is_refused(der: bytes) -> None:
    # A bit of every third byte, and of each where the signature stands; the long test
    # below has them all.
    for index in (*range(0, len(der), 3), *range(len(der) - 90, len(der))):
        flipped = bytearray(der)
        flipped[index] ^= 1 << index % 8
        with pytest.raises(VerificationError):
            parse_certificate(bytes(flipped), at=START)


@pytest.mark.long
def test_every_single_bit_of_a_certificate_counts(der: bytes) -> None:
    for bit in range(8 * len(der)):
        flipped = bytearray(der)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            parse_certificate(bytes(flipped), at=START)


def test_every_flipped_bit_of_its_quote_is_refused_however_well_it_is_signed(
    federation: Federation, draft: Draft
) -> None:
    """Whoever holds the key can sign any quote; only the quote's own chain counts."""
    client = federation.node("alice")
    quote, claims = cbor2.loads(draft.evidence).value
    signed = parse_evidence(quote).signed_bytes
    for index in range(0, len(signed), 7):
        flipped = bytearray(quote)
        flipped[index] ^= 1 << index % 8
        evidence = tagged(EVIDENCE_TAG, [bytes(flipped), claims])
        certificate = parse_certificate(
            replace(draft, evidence=evidence).sign(), at=START
        )
        with pytest.raises(VerificationError):
            client.appraise(
                certificate.unverified_quote,
                party="aggregator",
                expected_report_data=certificate.expected_report_data,
            )


def test_every_prefix_is_refused(der: bytes) -> None:
    for length in (*range(0, len(der), 97), len(der) - 1):
        assert code_of(der[:length]) == "certificate-malformed"


def test_bytes_after_the_end_are_refused(der: bytes) -> None:
    assert code_of(der + b"\0") == "certificate-malformed"


def test_an_oversized_certificate_is_refused_before_it_is_parsed(der: bytes) -> None:
    padded = der + bytes(MAX_CERTIFICATE_BYTES)
    assert code_of(padded) == "certificate-size"


def test_evidence_for_another_key_is_refused(draft: Draft) -> None:
    thief = new_identity().tls_key
    stolen = replace(draft, subject_key=thief, signing_key=thief)
    assert code_of(stolen.sign()) == "certificate-claims"


def test_a_quote_for_another_key_is_refused_by_its_report_data(
    federation: Federation, draft: Draft
) -> None:
    thief = new_identity().tls_key
    quote, _ = cbor2.loads(draft.evidence).value
    digest = hashlib.sha256(spki_of(thief.public_key())).digest()
    claims = cbor2.dumps({"pubkey-hash": cbor2.dumps([1, digest])})
    forged = replace(
        draft,
        subject_key=thief,
        signing_key=thief,
        evidence=tagged(EVIDENCE_TAG, [quote, claims]),
    )
    with pytest.raises(VerificationError) as caught:
        ClientEnrolment(federation.node("alice")).pin(forged.sign())
    assert caught.value.code == "report-data"


def test_a_certificate_signed_by_another_key_is_refused(draft: Draft) -> None:
    foreign = replace(draft, signing_key=new_identity().tls_key)
    assert code_of(foreign.sign()) == "certificate-signature"


def test_a_certificate_of_another_issuer_is_refused(draft: Draft) -> None:
    assert code_of(replace(draft, issuer="somebody").sign()) == "certificate-signature"


def test_a_key_of_another_curve_is_refused(draft: Draft) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    other = replace(draft, subject_key=key, signing_key=key)
    assert code_of(other.sign()) == "tls-key-invalid"


@pytest.mark.parametrize(
    "change",
    [
        {"ca": True},
        {"ca": None},
        {"usages": ()},
        {"usages": (ExtendedKeyUsageOID.CLIENT_AUTH,)},
        {
            "usages": (
                ExtendedKeyUsageOID.SERVER_AUTH,
                ExtendedKeyUsageOID.CLIENT_AUTH,
            )
        },
        {"usages": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)},
        {"key_usage": None},
        {"key_usage_critical": False},
        {"key_usage": SIGNING_OTHERS},
    ],
)
def test_any_other_role_is_refused(draft: Draft, change: dict[str, object]) -> None:
    changed = replace(draft, **change)  # type: ignore[arg-type]
    assert code_of(changed.sign()) == "certificate-role"


def test_missing_evidence_is_refused(draft: Draft) -> None:
    assert code_of(replace(draft, evidence_oids=()).sign()) == "certificate-evidence"


def test_evidence_under_another_name_is_missing_evidence(draft: Draft) -> None:
    other = x509.ObjectIdentifier("2.23.133.5.4.1")
    changed = replace(draft, evidence_oids=(other,))
    assert code_of(changed.sign()) == "certificate-evidence"


def test_critical_evidence_is_refused(draft: Draft) -> None:
    changed = replace(draft, evidence_critical=True)
    assert code_of(changed.sign()) == "certificate-evidence"


def test_evidence_given_twice_is_refused(draft: Draft) -> None:
    # The library does not write such a thing, so the second one's name is patched in.
    last = EVIDENCE_OID.dotted_string[:-1] + "8"
    twice = replace(draft, evidence_oids=(EVIDENCE_OID, x509.ObjectIdentifier(last)))
    der = resigned(
        twice.sign(),
        twice.signing_key,
        lambda body: body.replace(
            b"\x67\x81\x05\x05\x04\x08", b"\x67\x81\x05\x05\x04\x09"
        ),
    )
    assert code_of(der) == "certificate-malformed"


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e + b"\0",
        lambda e: e + e,
        lambda e: e[:-1],
        lambda _: b"",
        lambda _: b"\xff",
        lambda _: b"\xc1\x61a",  # a date that is none
        lambda _: cbor2.dumps("quote"),
        lambda _: tagged(EVIDENCE_TAG, ["quote", b""]),
        lambda e: tagged(EVIDENCE_TAG + 1, cbor2.loads(e).value),
        lambda e: tagged(EVIDENCE_TAG, [*cbor2.loads(e).value, b""]),
        lambda e: tagged(EVIDENCE_TAG, cbor2.loads(e).value[:1]),
        lambda e: cbor2.dumps(cbor2.loads(e).value),
        lambda e: b"\xda\x00\x00\xea\x60" + e[3:],  # the tag at greater length
        lambda e: e.replace(b"\x82", b"\x9f", 1) + b"\xff",  # a list without length
    ],
)
def test_evidence_has_one_form_only(
    draft: Draft, change: Callable[[bytes], bytes]
) -> None:
    changed = replace(draft, evidence=change(draft.evidence))
    assert code_of(changed.sign()) == "certificate-evidence"


def test_claims_may_say_nothing_more(draft: Draft) -> None:
    quote, claims = cbor2.loads(draft.evidence).value
    more = cbor2.dumps({**cbor2.loads(claims), "nonce": b""})
    evidence = tagged(EVIDENCE_TAG, [quote, more])
    assert code_of(replace(draft, evidence=evidence).sign()) == "certificate-claims"


@given(st.binary(max_size=200))
def test_no_evidence_bytes_raise_anything_but_a_verification_error(
    evidence: bytes,
) -> None:
    key = STRANGER.tls_key
    made = Draft(subject_key=key, signing_key=key, evidence=evidence).sign()
    with pytest.raises(VerificationError):
        parse_certificate(made, at=START)


@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_but_a_verification_error(der: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_certificate(der, at=START)


@pytest.fixture(scope="module")
def small_der() -> bytes:
    key = STRANGER.tls_key
    return Draft(subject_key=key, signing_key=key, evidence=b"\x00").sign()


@given(st.integers(0, 430), st.integers(0, 12), st.binary(max_size=8))
def test_no_damage_raises_anything_but_a_verification_error(
    small_der: bytes, start: int, length: int, patch: bytes
) -> None:
    damaged = small_der[:start] + patch + small_der[start + length :]
    with contextlib.suppress(VerificationError):
        parse_certificate(damaged, at=START)


def test_a_certificate_lives_as_long_as_it_says(der: bytes) -> None:
    parse_certificate(der, at=START + LIFE)
    with pytest.raises(VerificationError) as caught:
        parse_certificate(der, at=START + LIFE + timedelta(seconds=1))
    assert caught.value.code == "certificate-expired"


def test_a_certificate_from_the_future_is_refused_beyond_the_tolerance(
    der: bytes,
) -> None:
    earliest = START - BACKDATED - CLOCK_TOLERANCE
    parse_certificate(der, at=earliest)
    with pytest.raises(VerificationError) as caught:
        parse_certificate(der, at=earliest - timedelta(seconds=1))
    assert caught.value.code == "certificate-not-yet-valid"


def test_tls_libraries_whose_host_is_hours_behind_accept_a_certificate(
    der: bytes,
) -> None:
    made = x509.load_der_x509_certificate(der)
    assert made.not_valid_before_utc == START - timedelta(days=1)


def test_a_certificate_of_a_worker_does_not_make_a_server(
    federation: Federation,
) -> None:
    bob = federation.node("bob")
    der = make_certificate(bob.identity, bob.platform, at=START, life=LIFE)
    with pytest.raises(AppraisalError) as caught:
        ClientEnrolment(federation.node("alice")).pin(der)
    assert caught.value.code == "appraisal-measurement"


def test_openssl_reads_the_same_certificate(der: bytes, server: Node) -> None:
    text = openssl("x509", "-inform", "DER", "-noout", "-text", given=der).decode()
    for expected in (
        "CA:FALSE",
        "TLS Web Server Authentication",
        f"DNS:{SERVER_NAME}",
        EVIDENCE_OID.dotted_string,
    ):
        assert expected in text
    key = openssl("x509", "-inform", "DER", "-noout", "-pubkey", given=der)
    spki = openssl("pkey", "-pubin", "-outform", "DER", given=key)
    assert spki == server.identity.tls_spki


def openssl(*arguments: str, given: bytes) -> bytes:
    done = subprocess.run(  # noqa: S603 - an independent reader
        ["openssl", *arguments],  # noqa: S607 - wherever it is installed
        input=given,
        capture_output=True,
        check=True,
    )
    return done.stdout


def resigned(
    der: bytes, key: ec.EllipticCurvePrivateKey, change: Callable[[bytes], bytes]
) -> bytes:
    """Returns the certificate with its body changed, signed again by `key`."""
    certificate = x509.load_der_x509_certificate(der)
    body = certificate.tbs_certificate_bytes
    changed = change(body)
    assert len(changed) == len(body)
    assert changed != body
    at = der.index(body) + len(body)
    # Between body and signature stands the algorithm, ECDSA with SHA-256: 12 bytes.
    algorithm = der[at : at + 12]
    signature = b"\0" + key.sign(changed, ec.ECDSA(hashes.SHA256()))
    bits = b"\x03" + bytes([len(signature)]) + signature
    content = changed + algorithm + bits
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
