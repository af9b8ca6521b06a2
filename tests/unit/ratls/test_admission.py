from __future__ import annotations

from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.support.federation_in_memory import START

from cloister.ratls.admission import new_authority
from cloister.ratls.admission_table import Peer
from cloister.ratls.certificate import SIGNATURES_ONLY
from cloister.ratls.identity import new_identity, spki_of
from cloister.ratls.proofs import Identified

LIFE = timedelta(hours=1)


def peer(*, party: str = "alice", epoch: int = 1) -> Peer:
    identity = new_identity()
    return Peer(
        role="worker",
        party=party,
        epoch=epoch,
        tls_key=identity.tls_spki,
        encryption_key=identity.encryption_public,
        standing=Identified(party_key="ed25519:" + 64 * "0"),
    )


def test_an_admission_certificate_is_for_a_client_and_nothing_else() -> None:
    authority = new_authority(at=START, life=timedelta(days=30))
    alice = peer(epoch=7)
    der = authority.issue(alice, at=START, expires_at=START + LIFE)
    certificate = x509.load_der_x509_certificate(der)
    certificate.verify_directly_issued_by(authority.certificate)

    [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "worker alice epoch 7"
    assert len(list(certificate.subject)) == 1

    extensions = {e.oid: e for e in certificate.extensions}
    assert set(extensions) == {
        x509.BasicConstraints.oid,
        x509.ExtendedKeyUsage.oid,
        x509.KeyUsage.oid,
    }
    assert extensions[x509.KeyUsage.oid].value == SIGNATURES_ONLY
    assert all(e.critical for e in extensions.values())
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(usage.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not basic.value.ca
    assert certificate.not_valid_after_utc == START + LIFE


def test_tls_libraries_whose_host_is_hours_behind_accept_both_certificates() -> None:
    authority = new_authority(at=START, life=LIFE)
    der = authority.issue(peer(), at=START, expires_at=START + LIFE)
    client = x509.load_der_x509_certificate(der)
    for made in (authority.certificate, client):
        assert made.not_valid_before_utc == START - timedelta(days=1)
        assert made.not_valid_after_utc == START + LIFE


def test_the_longest_name_still_fits_a_certificate() -> None:
    authority = new_authority(at=START, life=timedelta(days=30))
    longest = peer(party="a" * 32, epoch=2**53)
    authority.issue(longest, at=START, expires_at=START + LIFE)


def test_the_admission_authority_may_issue_to_clients_only() -> None:
    authority = new_authority(at=START, life=LIFE)
    extensions = authority.certificate.extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert (basic.critical, basic.value.path_length) == (True, 0)
    assert list(usage.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert usage.critical
    assert spki_of(authority.key.public_key()) == authority.spki
    assert authority.certificate_pem() == authority.certificate.public_bytes(
        Encoding.PEM
    )


def test_every_authority_is_a_fresh_one_and_hides_its_key() -> None:
    first, second = (new_authority(at=START, life=LIFE) for _ in range(2))
    assert first.spki != second.spki
    assert "key" not in repr(first)
