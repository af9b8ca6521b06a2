from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.support.federation_in_memory import START, Federation, HandClock

from cloister.attestation.policy import Verdict
from cloister.errors import VerificationError
from cloister.plan.plan import Role
from cloister.ratls.admission import AdmissionTable, AttestedPeer, new_authority
from cloister.ratls.identity import new_identity, spki_of

LIFE = timedelta(hours=1)


@pytest.fixture(scope="module")
def verdict(federation: Federation) -> Verdict:
    node = federation.node("alice")
    data = bytes(range(64))
    return node.appraise(
        node.platform.quote(data), role="worker", expected_report_data=data
    )


@pytest.fixture
def table(clock: HandClock) -> AdmissionTable:
    return AdmissionTable(clock)


def peer_of(
    verdict: Verdict, *, party: str = "alice", epoch: int = 1, role: Role = "worker"
) -> AttestedPeer:
    identity = new_identity()
    return AttestedPeer(
        role=role,
        party=party,
        epoch=epoch,
        tls_key=identity.tls_spki,
        encryption_key=identity.encryption_public,
        verdict=verdict,
    )


def refusal(table: AdmissionTable, peer: AttestedPeer) -> str:
    with pytest.raises(VerificationError) as caught:
        table.check(peer.tls_key)
    return caught.value.code


def test_an_admitted_key_speaks_for_its_party(
    table: AdmissionTable, verdict: Verdict
) -> None:
    alice, bob = peer_of(verdict), peer_of(verdict, party="bob")
    table.admit(alice, expires_at=START + LIFE)
    table.admit(bob, expires_at=START + LIFE)
    assert table.check(alice.tls_key) is alice
    assert table.check(bob.tls_key) is bob
    assert table.parties() == (alice, bob)


def test_a_key_nobody_admitted_is_refused(
    table: AdmissionTable, verdict: Verdict
) -> None:
    assert refusal(table, peer_of(verdict)) == "not-admitted"
    assert table.parties() == ()


def test_an_admission_lapses_to_the_second(
    table: AdmissionTable, verdict: Verdict, clock: HandClock
) -> None:
    alice = peer_of(verdict)
    table.admit(alice, expires_at=START + LIFE)
    clock.forward(LIFE - timedelta(microseconds=1))
    assert table.check(alice.tls_key) is alice
    clock.forward(timedelta(microseconds=1))
    assert refusal(table, alice) == "admission-lapsed"


def test_a_newer_node_puts_the_older_one_out_at_once(
    table: AdmissionTable, verdict: Verdict
) -> None:
    older, newer = peer_of(verdict), peer_of(verdict, epoch=2)
    table.admit(older, expires_at=START + LIFE)
    table.admit(newer, expires_at=START + LIFE)
    assert refusal(table, older) == "not-admitted"
    assert table.parties() == (newer,)


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_epoch_that_is_not_newer_is_refused(
    table: AdmissionTable, verdict: Verdict, epoch: int
) -> None:
    current = peer_of(verdict, epoch=2)
    table.admit(current, expires_at=START + LIFE)
    with pytest.raises(VerificationError) as caught:
        table.admit(peer_of(verdict, epoch=epoch), expires_at=START + LIFE)
    assert caught.value.code == "epoch-old"
    assert table.parties() == (current,)


def test_an_old_epoch_is_refused_even_after_the_newer_one_lapsed(
    table: AdmissionTable, verdict: Verdict, clock: HandClock
) -> None:
    table.admit(peer_of(verdict, epoch=5), expires_at=START + LIFE)
    clock.forward(2 * LIFE)
    with pytest.raises(VerificationError, match="old epoch"):
        table.check_epoch("worker", "alice", 4)


def test_epochs_are_counted_for_each_party_and_role(
    table: AdmissionTable, verdict: Verdict
) -> None:
    table.admit(peer_of(verdict, epoch=9), expires_at=START + LIFE)
    table.admit(peer_of(verdict, party="bob"), expires_at=START + LIFE)
    table.check_epoch("server", "alice", 1)
    assert len(table.parties()) == 2


def test_an_admission_certificate_is_for_a_client_and_nothing_else(
    verdict: Verdict,
) -> None:
    authority = new_authority(at=START, life=timedelta(days=30))
    alice = peer_of(verdict, epoch=7)
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
    }
    assert all(e.critical for e in extensions.values())
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(usage.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not basic.value.ca
    assert certificate.not_valid_after_utc == START + LIFE


def test_the_longest_name_still_fits_a_certificate(verdict: Verdict) -> None:
    authority = new_authority(at=START, life=timedelta(days=30))
    longest = peer_of(verdict, party="a" * 32, epoch=2**53)
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
