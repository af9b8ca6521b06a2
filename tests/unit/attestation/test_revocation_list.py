from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.attestation.scenarios import Judge

from cloister.attestation.certificates import Certificate, parse_certificate
from cloister.attestation.der import parse_der
from cloister.attestation.revocation_list import (
    MAX_CRL_BYTES,
    RevocationList,
    parse_revocation_list,
)
from cloister.errors import VerificationError

WHAT = "root CA CRL"
DAY = timedelta(days=1)


def builder(
    judge: Judge, *serials: int, number: int | None = 7
) -> x509.CertificateRevocationListBuilder:
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(judge.root.root.certificate.subject)
        .last_update(judge.at)
        .next_update(judge.at + 30 * DAY)
    )
    if number is not None:
        made = made.add_extension(x509.CRLNumber(number), critical=False)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        made = made.add_revoked_certificate(entry.revocation_date(judge.at).build())
    return made


def der_of(
    made: x509.CertificateRevocationListBuilder, key: ec.EllipticCurvePrivateKey
) -> bytes:
    return made.sign(key, SHA256()).public_bytes(Encoding.DER)


def refused(der: bytes) -> str:
    with pytest.raises(VerificationError) as refusal:
        parse_revocation_list(der, what=WHAT)
    assert (refusal.value.code, refusal.value.step) == ("crl-malformed", 3)
    assert WHAT in refusal.value.what
    return refusal.value.what


@pytest.fixture
def anchor(judge: Judge) -> Certificate:
    return parse_certificate(judge.root.trust_root.der, step=2)


@pytest.fixture
def honest(judge: Judge) -> RevocationList:
    return parse_revocation_list(
        der_of(builder(judge, 5, 6), judge.root.root.key), what=WHAT
    )


def test_a_list_gives_its_values(honest: RevocationList, judge: Judge) -> None:
    assert honest.number == 7
    assert honest.issuer == judge.root.root.certificate.subject.public_bytes()
    assert (honest.this_update, honest.next_update) == (judge.at, judge.at + 30 * DAY)


def test_an_honest_list_is_accepted_at_both_ends_of_its_time(
    honest: RevocationList, anchor: Certificate, judge: Judge
) -> None:
    for when in (judge.at, judge.at + 30 * DAY):
        honest.check_issued_by(anchor, at=when)
    second = timedelta(seconds=1)
    for when, code in (
        (judge.at - second, "crl-not-yet-valid"),
        (judge.at + 30 * DAY + second, "crl-expired"),
    ):
        with pytest.raises(VerificationError) as refusal:
            honest.check_issued_by(anchor, at=when)
        assert refusal.value.code == code


def test_only_what_is_on_it_is_revoked(honest: RevocationList, judge: Judge) -> None:
    signing = parse_certificate(
        judge.root.signing.certificate.public_bytes(Encoding.DER), step=4
    )
    honest.check_not_revoked(signing, step=4)
    serial = signing.body.serial_number
    revoking = parse_revocation_list(
        der_of(builder(judge, 5, serial, 6), judge.root.root.key), what=WHAT
    )
    with pytest.raises(VerificationError) as refusal:
        revoking.check_not_revoked(signing, step=4)
    assert (refusal.value.code, refusal.value.step) == ("certificate-revoked", 4)
    assert f"{serial:x}" in refusal.value.got


def test_a_list_of_another_issuer_is_refused(
    honest: RevocationList, judge: Judge
) -> None:
    ca = parse_certificate(judge.root.ca.certificate.public_bytes(Encoding.DER), step=2)
    with pytest.raises(VerificationError) as refusal:
        honest.check_issued_by(ca, at=judge.at)
    assert refusal.value.code == "crl-issuer"


def test_a_list_under_the_right_name_by_another_key_is_refused(
    judge: Judge, anchor: Certificate
) -> None:
    for key in (judge.root.ca.key, ec.generate_private_key(ec.SECP256R1())):
        forged = parse_revocation_list(der_of(builder(judge), key), what=WHAT)
        with pytest.raises(VerificationError) as refusal:
            forged.check_issued_by(anchor, at=judge.at)
        assert refusal.value.code == "crl-signature"


def test_an_issuer_that_may_not_issue_lists_is_refused(judge: Judge) -> None:
    signing = judge.root.signing
    der = der_of(
        x509.CertificateRevocationListBuilder()
        .issuer_name(signing.certificate.subject)
        .last_update(judge.at)
        .next_update(judge.at + DAY)
        .add_extension(x509.CRLNumber(1), critical=False),
        signing.key,
    )
    certificate = parse_certificate(
        signing.certificate.public_bytes(Encoding.DER), step=4
    )
    with pytest.raises(VerificationError) as refusal:
        parse_revocation_list(der, what=WHAT).check_issued_by(certificate, at=judge.at)
    assert refusal.value.code == "crl-issuer"


def test_a_list_without_number_is_refused(judge: Judge) -> None:
    key = judge.root.root.key
    assert "extensions" in refused(der_of(builder(judge, number=None), key))
    other = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    made = builder(judge, number=None).add_extension(other, critical=False)
    assert "CRL number" in refused(der_of(made, key))


def test_a_list_that_says_only_a_part_is_refused(judge: Judge) -> None:
    key = judge.root.root.key
    for extension in (
        x509.DeltaCRLIndicator(1),
        x509.IssuingDistributionPoint(
            full_name=None,
            relative_name=None,
            only_contains_user_certs=True,
            only_contains_ca_certs=False,
            only_some_reasons=None,
            indirect_crl=False,
            only_contains_attribute_certs=False,
        ),
    ):
        made = builder(judge).add_extension(extension, critical=True)
        assert "critical" in refused(der_of(made, key))


def test_another_signature_algorithm_is_refused(judge: Judge) -> None:
    made = builder(judge).sign(judge.root.root.key, SHA384())
    assert "SHA-256" in refused(made.public_bytes(Encoding.DER))
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    made = builder(judge).sign(key, SHA256())
    assert "SHA-256" in refused(made.public_bytes(Encoding.DER))


def test_a_signature_of_unfinished_octets_is_refused(judge: Judge) -> None:
    der = b"\1"
    while der[-1] & 1:
        der = der_of(builder(judge), judge.root.root.key)
    unused_at = len(der) - len(parse_der(der).children()[2].content)
    refused(der[:unused_at] + b"\1" + der[unused_at + 1 :])


@pytest.mark.parametrize(
    "der", [b"", b"\x30\x00", b"\x30\x02\x30\x00", bytes(MAX_CRL_BYTES + 1)]
)
def test_bytes_that_are_no_list_are_refused(der: bytes) -> None:
    refused(der)


def test_every_truncation_of_a_list_is_refused(judge: Judge) -> None:
    der = der_of(builder(judge, 5), judge.root.root.key)
    for length in range(len(der)):
        refused(der[:length])


def test_one_flipped_bit_in_any_byte_of_a_list_is_refused(
    judge: Judge, anchor: Certificate
) -> None:
    der = der_of(builder(judge, 5), judge.root.root.key)
    for position in range(len(der)):
        for bit in range(8):
            flipped = bytearray(der)
            flipped[position] ^= 1 << bit
            with pytest.raises(VerificationError):
                parse_revocation_list(bytes(flipped), what=WHAT).check_issued_by(
                    anchor, at=judge.at
                )


@given(
    edits=st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=10_000),
            st.integers(min_value=0, max_value=2),
            st.binary(max_size=2),
        ),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_edited_list_is_parsed_or_refused_and_nothing_else(
    judge: Judge, edits: list[tuple[int, int, bytes]]
) -> None:
    anchor = parse_certificate(judge.root.trust_root.der, step=2)
    honest = der = der_of(builder(judge, 5), judge.root.root.key)
    for position, removed, inserted in edits:
        start = position % len(der)
        der = der[:start] + inserted + der[start + removed :]
    with suppress(VerificationError):
        parse_revocation_list(der, what=WHAT).check_issued_by(anchor, at=judge.at)
        assert der == honest
