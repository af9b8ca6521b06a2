"""Evidence and signatures taken to where they were not made for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.support.federation_in_memory import START, Federation, quoting
from tests.support.hostile_platforms import CountingPlatform, FixedPlatform
from tests.support.meeting import CERTIFICATE_LIFE, Meeting, transcript_of
from tests.support.refusals import code_of

from cloister.ratls.admission_table import AdmissionTable
from cloister.ratls.certificate import make_certificate, parse_certificate
from cloister.ratls.challenge import Answer, EvidenceProof, ServerProof
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node
from cloister.ratls.proofs import sign_possession


def test_a_servers_evidence_from_another_session_is_refused(
    server: Node, alice: Node
) -> None:
    old, new = Meeting(server, alice), Meeting(server, alice)
    proof = old.server_proof()
    new.answer()
    assert code_of(lambda: new.client.prove(proof)) == "report-data"


def test_a_clients_evidence_from_another_session_is_refused(
    server: Node, alice: Node
) -> None:
    old, new = Meeting(server, alice), Meeting(server, alice)
    proof = old.client_proof()
    new.server_proof()
    assert code_of(lambda: new.server.admit(proof)) == "report-data"
    assert new.table.parties() == ()


def test_an_answer_from_another_session_is_refused(server: Node, alice: Node) -> None:
    old, new = Meeting(server, alice), Meeting(server, alice)
    answer = old.answer()
    new.challenge()
    assert code_of(lambda: new.server.prove(answer)) == "transcript-signature"


def test_a_whole_recorded_enrolment_admits_nobody(server: Node, alice: Node) -> None:
    recorded = Meeting(server, alice)
    hello = recorded.hello()
    challenge = recorded.server.challenge(hello)
    answer = recorded.client.answer(challenge)
    table = AdmissionTable(server.clock)
    replayed = Meeting(server, alice, table=table)
    replayed.server.challenge(hello)
    assert code_of(lambda: replayed.server.prove(answer)) == "transcript-signature"
    assert table.parties() == ()


def test_a_servers_own_evidence_sent_back_admits_nobody(meeting: Meeting) -> None:
    proof = meeting.server_proof()
    reflected = EvidenceProof(quote=proof.quote)
    assert code_of(lambda: meeting.server.admit(reflected)) == "report-data"
    assert meeting.table.parties() == ()


def test_a_clients_own_kind_of_evidence_makes_no_server(meeting: Meeting) -> None:
    proof = meeting.server_proof()
    transcript = transcript_of(meeting.server)
    quote = meeting.client_node.platform.quote(transcript.client_report_data())
    reflected = ServerProof(warrant=proof.warrant, quote=quote)
    assert code_of(lambda: meeting.client.prove(reflected)) == "report-data"


def test_a_worker_that_quotes_a_servers_report_data_is_no_server(
    meeting: Meeting,
) -> None:
    proof = meeting.server_proof()
    transcript = transcript_of(meeting.server)
    quote = meeting.client_node.platform.quote(transcript.server_report_data())
    posing = ServerProof(warrant=proof.warrant, quote=quote)
    assert code_of(lambda: meeting.client.prove(posing)) == "appraisal-measurement"


DIVERSIONS: dict[str, Any] = {
    "run_id": "blobs/b",
    "client_role": "server",
    "client_party": "bob",
    "server_role": "custodian",
    "server_party": "other",
    "plan_hash": bytes(32),
    "client_nonce": bytes(32),
    "server_nonce": bytes(32),
    "client_key": new_identity().tls_spki,
    "server_key": new_identity().tls_spki,
    "admission_key": new_identity().tls_spki,
}
OF_CLIENT: dict[str, Any] = {
    "client_encryption_key": bytes(32),
}
OF_SERVER: dict[str, Any] = {
    "server_encryption_key": bytes(32),
}


@pytest.mark.parametrize("name", [*DIVERSIONS, *OF_CLIENT])
def test_a_clients_evidence_cannot_be_diverted(meeting: Meeting, name: str) -> None:
    meeting.server_proof()
    made_for = replace(
        transcript_of(meeting.client), **{name: {**DIVERSIONS, **OF_CLIENT}[name]}
    )
    quote = meeting.client_node.platform.quote(made_for.client_report_data())
    diverted = EvidenceProof(quote=quote)
    assert code_of(lambda: meeting.server.admit(diverted)) == "report-data"
    assert meeting.table.parties() == ()


@pytest.mark.parametrize("name", [*DIVERSIONS, *OF_SERVER])
def test_a_servers_evidence_cannot_be_diverted(meeting: Meeting, name: str) -> None:
    proof = meeting.server_proof()
    made_for = replace(
        transcript_of(meeting.server), **{name: {**DIVERSIONS, **OF_SERVER}[name]}
    )
    quote = meeting.server_node.platform.quote(made_for.server_report_data())
    diverted = ServerProof(warrant=proof.warrant, quote=quote)
    assert code_of(lambda: meeting.client.prove(diverted)) == "report-data"


def test_a_certificates_evidence_is_no_answer_to_a_challenge(meeting: Meeting) -> None:
    proof = meeting.server_proof()
    certificate = parse_certificate(meeting.certificate(), at=START)
    old = ServerProof(warrant=proof.warrant, quote=certificate.unverified_quote)
    assert code_of(lambda: meeting.client.prove(old)) == "report-data"

    own = make_certificate(
        meeting.client_node.identity,
        meeting.client_node.platform,
        at=START,
        life=CERTIFICATE_LIFE,
    )
    quote = parse_certificate(own, at=START).unverified_quote
    meeting.client.prove(proof)
    offered = EvidenceProof(quote=quote)
    assert code_of(lambda: meeting.server.admit(offered)) == "report-data"


def test_evidence_of_a_challenge_makes_no_certificate(
    meeting: Meeting, server: Node
) -> None:
    proof = meeting.server_proof()
    fixed = quoting(server, FixedPlatform(server.platform, kept=proof.quote))
    certificate = make_certificate(
        fixed.identity, fixed.platform, at=START, life=CERTIFICATE_LIFE
    )
    pin = ClientEnrolment(meeting.client_node).pin
    assert code_of(lambda: pin(certificate)) == "report-data"


def test_a_second_genuine_server_cannot_take_over_a_session(
    federation: Federation, server: Node, alice: Node
) -> None:
    """A host starts two servers and relays one's challenge to the other's client."""
    first = Meeting(server, alice)
    second = Meeting(federation.node("aggregator"), alice)
    hello = first.hello()
    answer = first.client.answer(second.server.challenge(hello))
    assert code_of(lambda: second.server.prove(answer)) == "transcript-signature"


@pytest.mark.parametrize("name", ["nonce", "admission_key", "encryption_key"])
def test_nothing_in_the_challenge_can_be_exchanged(meeting: Meeting, name: str) -> None:
    challenge = meeting.challenge()
    other = {
        "nonce": bytes(32),
        "admission_key": new_identity().tls_spki,
        "encryption_key": bytes(32),
    }
    altered = msgspec.structs.replace(challenge, **{name: other[name]})
    answer = meeting.client.answer(altered)
    assert code_of(lambda: meeting.server.prove(answer)) == "transcript-signature"


@pytest.mark.parametrize("name", ["nonce", "encryption_key", "party"])
def test_nothing_in_the_hello_can_be_exchanged(meeting: Meeting, name: str) -> None:
    other = {"nonce": bytes(32), "encryption_key": bytes(32), "party": "bob"}
    hello = msgspec.structs.replace(meeting.hello(), **{name: other[name]})
    answer = meeting.client.answer(meeting.server.challenge(hello))
    assert code_of(lambda: meeting.server.prove(answer)) == "transcript-signature"


def test_a_key_that_is_not_held_is_refused_before_any_quote(
    server: Node, alice: Node
) -> None:
    counting = CountingPlatform(server.platform)
    meeting = Meeting(quoting(server, counting), alice)
    answer = meeting.answer()
    made = counting.quotes
    forged = Answer(
        warrant=answer.warrant,
        signature=sign_possession(new_identity(), transcript_of(meeting.client)),
    )
    assert code_of(lambda: meeting.server.prove(forged)) == "transcript-signature"
    assert counting.quotes == made


@pytest.mark.parametrize("signature", [b"", b"\x30\x00", bytes(72), b"\xff" * 80])
def test_a_signature_that_is_none_is_refused(
    meeting: Meeting, signature: bytes
) -> None:
    answer = msgspec.structs.replace(meeting.answer(), signature=signature)
    assert code_of(lambda: meeting.server.prove(answer)) == "transcript-signature"
