from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography import x509
from tests.support.federation_in_memory import (
    START,
    Federation,
    HandClock,
    rewarranted,
)
from tests.support.meeting import Meeting
from tests.support.refusals import code_of

from cloister.attestation.claims import SgxMeasurements, TdxMeasurements
from cloister.errors import ConfigError, ProtocolError
from cloister.ratls.admission import AdmissionTable
from cloister.ratls.challenge import (
    Admission,
    Answer,
    Challenge,
    ClientProof,
    Hello,
    ServerProof,
)
from cloister.ratls.enrolment import ADMISSION_LIFE, ClientEnrolment
from cloister.ratls.node import Node
from cloister.ratls.warrant import Warrant


def test_an_sgx_server_and_a_tdx_client_attest_each_other(meeting: Meeting) -> None:
    peer, admission = meeting.admit()
    server, certificate = meeting.client.finish(admission)

    assert (peer.role, peer.party, peer.epoch) == ("worker", "alice", 1)
    assert peer.tls_key == meeting.client_node.identity.tls_spki
    assert peer.encryption_key == meeting.client_node.identity.encryption_public
    assert isinstance(peer.verdict.claims.measurements, TdxMeasurements)
    assert meeting.table.parties() == (peer,)

    assert (server.role, server.party, server.epoch) == ("server", "aggregator", 1)
    assert server.tls_key == meeting.server_node.identity.tls_spki
    assert server.encryption_key == meeting.server_node.identity.encryption_public
    assert isinstance(server.verdict.claims.measurements, SgxMeasurements)

    issued = x509.load_der_x509_certificate(certificate)
    issued.verify_directly_issued_by(meeting.authority.certificate)


def test_an_sgx_client_is_admitted_beside_a_tdx_client(
    server: Node, alice: Node, bob: Node, clock: HandClock
) -> None:
    table = AdmissionTable(clock)
    for client in (alice, bob):
        Meeting(server, client, table=table).finish()
    assert [peer.party for peer in table.parties()] == ["alice", "bob"]


def test_every_session_has_its_own_nonces(server: Node, alice: Node) -> None:
    first, second = Meeting(server, alice), Meeting(server, alice)
    assert first.hello().nonce != second.hello().nonce
    assert first.challenge().nonce != second.challenge().nonce


def expiry_of(meeting: Meeting) -> datetime:
    _, admission = meeting.admit()
    return x509.load_der_x509_certificate(admission.certificate).not_valid_after_utc


def test_an_admission_lasts_half_a_day(meeting: Meeting, clock: HandClock) -> None:
    assert expiry_of(meeting) == START + ADMISSION_LIFE
    clock.forward(ADMISSION_LIFE)
    key = meeting.client_node.identity.tls_spki
    assert code_of(lambda: meeting.table.check(key)) == "admission-lapsed"


def test_an_admission_does_not_outlive_the_warrant(
    federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    ends = int((START + timedelta(minutes=5)).timestamp())
    meeting = Meeting(server, rewarranted(federation, alice, expires_at=ends))
    assert expiry_of(meeting) == START + timedelta(minutes=5)
    clock.forward(timedelta(minutes=5))
    key = alice.identity.tls_spki
    assert code_of(lambda: meeting.table.check(key)) == "admission-lapsed"


def test_a_warrant_without_end_admits_for_half_a_day(
    federation: Federation, server: Node, alice: Node
) -> None:
    endless = rewarranted(federation, alice, expires_at=2**53)
    assert expiry_of(Meeting(server, endless)) == START + ADMISSION_LIFE


def test_an_admission_does_not_outlive_the_evidence(
    federation: Federation, meeting: Meeting, clock: HandClock
) -> None:
    verdict = meeting.server_node.appraise(
        meeting.client_node.platform.quote(bytes(64)),
        role="worker",
        expected_report_data=bytes(64),
    )
    clock.now = verdict.claims.not_after - timedelta(hours=1)
    nodes = (
        federation.node("aggregator", clock=clock),
        federation.node("alice", clock=clock),
    )
    assert expiry_of(Meeting(*nodes)) == verdict.claims.not_after


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("version", 2, "version-differs"),
        ("version", 0, "version-differs"),
        ("run_id", "blobs/b", "run-differs"),
        ("plan_hash", bytes(32), "plan-differs"),
        ("party", "mallory", "party-unknown"),
        ("party", "aggregator", "party-unknown"),
        ("role", "server", "party-unknown"),
        ("tls_key", bytes(91), "tls-key-invalid"),
    ],
)
def test_a_hello_from_elsewhere_is_refused(
    meeting: Meeting, name: str, value: Any, code: str
) -> None:
    hello = msgspec.structs.replace(meeting.hello(), **{name: value})
    assert code_of(lambda: meeting.server.challenge(hello)) == code


def test_the_server_cannot_enrol_with_itself(server: Node) -> None:
    meeting = Meeting(server, server)
    assert code_of(meeting.challenge) == "party-unknown"


def test_an_admission_key_that_is_none_is_refused(meeting: Meeting) -> None:
    challenge = msgspec.structs.replace(meeting.challenge(), admission_key=bytes(91))
    assert code_of(lambda: meeting.client.answer(challenge)) == "tls-key-invalid"


def test_steps_out_of_order_are_bugs(meeting: Meeting) -> None:
    warrant: Warrant = meeting.client_node.warrant
    with pytest.raises(RuntimeError):
        meeting.client.answer(
            Challenge(nonce=b"", admission_key=b"", encryption_key=b"")
        )
    with pytest.raises(RuntimeError):
        meeting.client.prove(ServerProof(warrant=warrant, quote=b""))
    with pytest.raises(RuntimeError):
        meeting.client.finish(Admission(certificate=b""))
    with pytest.raises(RuntimeError):
        meeting.server.prove(Answer(warrant=warrant, signature=b""))
    with pytest.raises(RuntimeError):
        meeting.server.admit(ClientProof(quote=b""))
    meeting.challenge()
    with pytest.raises(RuntimeError):
        meeting.server.admit(ClientProof(quote=b""))


def test_an_admission_for_another_key_cannot_be_used(
    server: Node, alice: Node, bob: Node, clock: HandClock
) -> None:
    table = AdmissionTable(clock)
    _, bobs = Meeting(server, bob, table=table).admit()
    meeting = Meeting(server, alice, table=table)
    meeting.admit()
    for certificate in (bobs.certificate, b"", b"\x30\x00"):
        with pytest.raises(ProtocolError) as caught:
            meeting.client.finish(Admission(certificate=certificate))
        assert caught.value.code == "admission-invalid"


def test_a_client_of_another_plan_says_hello_to_nobody(
    other_federation: Federation, server: Node
) -> None:
    stranger = other_federation.node("alice")
    hello: Hello = ClientEnrolment(stranger).hello()
    meeting = Meeting(server, stranger)
    assert code_of(lambda: meeting.server.challenge(hello)) == "plan-differs"
    assert code_of(meeting.hello) == "root-untrusted"


def test_an_unknown_party_is_the_users_error(alice: Node) -> None:
    with pytest.raises(ConfigError):
        alice.check_warrant(
            alice.warrant,
            role="worker",
            party="mallory",
            tls_key=alice.identity.tls_spki,
        )
