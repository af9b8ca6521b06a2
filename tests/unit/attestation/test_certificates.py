from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.certificates import Certificate, parse_certificate
from cloister.attestation.der import parse_der
from cloister.attestation.platforms.simulated.root import (
    SimulatedRoot,
    create_simulated_root,
)
from cloister.errors import VerificationError

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "one")])
USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
LEAF = x509.BasicConstraints(ca=False, path_length=None)


def builder(at: datetime, name: x509.Name = NAME) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(7)
        .not_valid_before(at)
        .not_valid_after(at + timedelta(days=1))
    )


def der_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def plain(at: datetime) -> x509.CertificateBuilder:
    return (
        builder(at)
        .public_key(KEY.public_key())
        .add_extension(LEAF, critical=True)
        .add_extension(USAGE, critical=True)
    )


def refused(der: bytes) -> VerificationError:
    with pytest.raises(VerificationError) as refusal:
        parse_certificate(der, step=2)
    assert refusal.value.code == "certificate-malformed"
    assert refusal.value.step == 2
    return refusal.value


@pytest.fixture
def chain(root: SimulatedRoot) -> tuple[Certificate, Certificate]:
    return (
        parse_certificate(der_of(root.ca.certificate), step=2),
        parse_certificate(der_of(root.root.certificate), step=2),
    )


def test_a_certificate_gives_its_values(at: datetime) -> None:
    parsed = parse_certificate(der_of(plain(at).sign(KEY, SHA256())), step=2)
    assert parsed.common_name == "one"
    assert parsed.body.subject == parsed.body.issuer == NAME.public_bytes()
    assert parsed.body.serial_number == 7
    assert (parsed.not_before, parsed.not_after) == (at, at + timedelta(days=1))
    assert parsed.public_key == KEY.public_key()
    assert parsed.body.signs_data
    assert not parsed.body.is_ca
    assert not parsed.body.signs_certificates
    assert parsed.body.sgx_extension is None


def test_an_rsa_key_is_refused(at: datetime) -> None:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    made = (
        builder(at)
        .public_key(key.public_key())
        .add_extension(LEAF, critical=True)
        .add_extension(USAGE, critical=True)
    )
    assert "P-256" in refused(der_of(made.sign(KEY, SHA256()))).what
    assert "SHA-256" in refused(der_of(made.sign(key, SHA256()))).what


def test_another_curve_is_refused(at: datetime) -> None:
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    made = (
        builder(at)
        .public_key(other)
        .add_extension(LEAF, critical=True)
        .add_extension(USAGE, critical=True)
    )
    assert "P-256" in refused(der_of(made.sign(KEY, SHA256()))).what


def test_another_hash_is_refused(at: datetime) -> None:
    assert "SHA-256" in refused(der_of(plain(at).sign(KEY, SHA384()))).what


def test_an_unknown_critical_extension_is_refused(at: datetime) -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")
    made = plain(at).add_extension(unknown, critical=True).sign(KEY, SHA256())
    assert "1.2.3" in refused(der_of(made)).what
    plain_too = plain(at).add_extension(unknown, critical=False).sign(KEY, SHA256())
    parse_certificate(der_of(plain_too), step=2)


def test_missing_constraints_and_usage_are_refused(at: datetime) -> None:
    bare = builder(at).public_key(KEY.public_key())
    for made in (
        bare,
        bare.add_extension(LEAF, critical=True),
        bare.add_extension(USAGE, critical=True),
    ):
        refused(der_of(made.sign(KEY, SHA256())))


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_a_subject_without_exactly_one_common_name_is_refused(
    at: datetime, names: list[str]
) -> None:
    name = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "o")]
        + [x509.NameAttribute(NameOID.COMMON_NAME, text) for text in names]
    )
    made = (
        builder(at, name)
        .public_key(KEY.public_key())
        .add_extension(LEAF, critical=True)
        .add_extension(USAGE, critical=True)
    )
    assert "common name" in refused(der_of(made.sign(KEY, SHA256()))).what


@pytest.mark.parametrize("der", [b"", b"\x30\x00", b"\x30\x02\x30\x00", bytes(9_000)])
def test_bytes_that_are_no_certificate_are_refused(der: bytes) -> None:
    refused(der)


def test_a_signature_of_unfinished_octets_is_refused(at: datetime) -> None:
    # Where the last bit is 0, "one bit unused" is good DER, and no signature covers it.
    der = b"\1"
    while der[-1] & 1:
        der = der_of(plain(at).sign(KEY, SHA256()))
    unused_at = len(der) - len(parse_der(der).children()[2].content)
    assert der[unused_at] == 0
    parse_certificate(der, step=2)
    x509.load_der_x509_certificate(der[:unused_at] + b"\1" + der[unused_at + 1 :])
    refused(der[:unused_at] + b"\1" + der[unused_at + 1 :])


def test_an_issued_certificate_is_accepted(
    chain: tuple[Certificate, Certificate],
) -> None:
    ca, anchor = chain
    ca.check_issued_by(anchor, step=2)
    anchor.check_issued_by(anchor, step=2)


def test_an_issuer_of_the_same_name_with_another_key_is_refused(
    chain: tuple[Certificate, Certificate], tmp_path_factory: pytest.TempPathFactory
) -> None:
    ca, anchor = chain
    other = create_simulated_root(
        tmp_path_factory.mktemp("other"), at=anchor.not_before
    )
    imposter = parse_certificate(other.trust_root.der, step=2)
    with pytest.raises(VerificationError) as refusal:
        ca.check_issued_by(imposter, step=2)
    assert refusal.value.code == "certificate-signature"


def test_an_issuer_that_is_no_authority_is_refused(
    chain: tuple[Certificate, Certificate], root: SimulatedRoot
) -> None:
    signing = parse_certificate(der_of(root.signing.certificate), step=2)
    with pytest.raises(VerificationError) as refusal:
        chain[0].check_issued_by(signing, step=2)
    assert refusal.value.code == "certificate-role"


def test_an_issuer_of_another_name_is_refused(
    chain: tuple[Certificate, Certificate],
) -> None:
    ca, anchor = chain
    with pytest.raises(VerificationError) as refusal:
        anchor.check_issued_by(ca, step=4)
    assert refusal.value.code == "certificate-issuer"
    assert refusal.value.step == 4


def test_validity_includes_both_ends_and_nothing_beyond(
    chain: tuple[Certificate, Certificate],
) -> None:
    certificate = chain[0]
    second = timedelta(seconds=1)
    certificate.check_valid_at(certificate.not_before, step=2)
    certificate.check_valid_at(certificate.not_after, step=2)
    for when, code in (
        (certificate.not_before - second, "certificate-not-yet-valid"),
        (certificate.not_after + second, "certificate-expired"),
    ):
        with pytest.raises(VerificationError) as refusal:
            certificate.check_valid_at(when, step=2)
        assert refusal.value.code == code


@given(
    edits=st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=10_000),
            st.integers(min_value=0, max_value=1),
            st.binary(max_size=1),
        ),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_edited_certificate_is_parsed_or_refused_and_nothing_else(
    root: SimulatedRoot, edits: list[tuple[int, int, bytes]]
) -> None:
    der = der_of(root.ca.certificate)
    anchor = parse_certificate(der_of(root.root.certificate), step=2)
    for position, removed, inserted in edits:
        start = position % len(der)
        der = der[:start] + inserted + der[start + removed :]
    with suppress(VerificationError):
        parse_certificate(der, step=2).check_issued_by(anchor, step=2)
        # Only what was not changed at all is still issued by the root.
        assert der == der_of(root.ca.certificate)
