from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from tests.support.federation_in_memory import (
    START,
    Federation,
    HandClock,
    make_federation,
    quoting,
    rewarranted,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.meeting import Meeting
from tests.support.plan_tree import by_identity
from tests.support.refusals import code_of

from cloister.attestation.claims import SgxMeasurements
from cloister.attestation.policy import Verdict
from cloister.errors import ConfigError, ProtocolError
from cloister.ratls.admission_table import AdmissionTable
from cloister.ratls.challenge import (
    Admission,
    Challenge,
    IdentityProof,
    ServerProof,
)
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.node import Node
from cloister.ratls.warrant import HeldWarrant


def test_a_client_ends_with_the_attested_server_and_its_own_admission(
    meeting: Meeting,
) -> None:
    admittance = meeting.finish()
    server, node = admittance.server, meeting.server_node
    assert (server.role, server.party, server.epoch) == ("server", "aggregator", 1)
    assert server.tls_key == node.identity.tls_spki
    assert server.encryption_key == node.identity.encryption_public
    assert isinstance(server.standing, Verdict)
    assert isinstance(server.standing.claims.measurements, SgxMeasurements)
    issued = x509.load_der_x509_certificate(admittance.certificate)
    issued.verify_directly_issued_by(meeting.authority.certificate)
    [line] = meeting.table.admitted()
    assert admittance.expires_at == line.expires_at
    assert admittance.last_round == line.last_round


def test_every_enrolment_has_its_own_nonce(alice: Node) -> None:
    first, second = (ClientEnrolment(alice).hello() for _ in range(2))
    assert first.nonce != second.nonce


def test_a_client_by_identity_still_wants_the_servers_evidence(tmp_path: Path) -> None:
    mixed = make_federation(tmp_path, change=lambda tree: by_identity(tree, "bob"))
    server, bob = mixed.node("aggregator"), mixed.node("bob")
    assert isinstance(Meeting(server, bob).client_proof(), IdentityProof)
    other = quoting(server, mixed.platform("alice"))
    assert code_of(Meeting(other, bob).client_proof) == "appraisal-measurement"


def test_a_server_of_another_deployment_is_not_pinned(
    other_federation: Federation, server: Node
) -> None:
    stranger = other_federation.node("alice")
    assert code_of(Meeting(server, stranger).hello) == "root-untrusted"


def test_an_admission_key_that_is_none_is_refused(meeting: Meeting) -> None:
    challenge = msgspec.structs.replace(meeting.challenge(), admission_key=bytes(91))
    assert code_of(lambda: meeting.client.answer(challenge)) == "tls-key-invalid"


def test_a_client_that_met_a_newer_server_refuses_the_older_one(
    federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    newer = federation.node("aggregator", clock=clock, epoch=2)
    Meeting(newer, alice).finish()
    counting = CountingPlatform(alice.platform)
    older = Meeting(server, quoting(alice, counting))
    assert code_of(older.client_proof) == "epoch-old"
    assert counting.quotes == 0
    # The newer one is met again at each renewal.
    Meeting(newer, alice).finish()


def test_a_client_that_met_a_server_refuses_another_key_of_its_epoch(
    federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    Meeting(server, alice).finish()
    twin = Meeting(federation.node("aggregator", clock=clock), alice)
    assert code_of(twin.client_proof) == "epoch-forked"


def test_a_server_that_fails_ages_no_other(
    federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    """Its warrant is good and newer, its code is not: nothing is remembered of it."""
    newer = federation.node("aggregator", clock=clock, epoch=2)
    genuine = Meeting(newer, alice)
    proof = genuine.server_proof()
    quote = alice.platform.quote(bytes(64))
    forged = ServerProof(warrant=proof.warrant, quote=quote)
    assert code_of(lambda: genuine.client.prove(forged)) == "report-data"
    Meeting(server, alice).finish()


def test_a_client_without_a_warrant_says_so_before_it_signs(
    server: Node, alice: Node
) -> None:
    meeting = Meeting(server, replace(alice, warrant=HeldWarrant()))
    challenge = meeting.challenge()
    with pytest.raises(ProtocolError) as caught:
        meeting.client.answer(challenge)
    assert caught.value.code == "no-warrant"


def test_a_renewed_warrant_is_the_one_that_is_shown(
    federation: Federation, server: Node, alice: Node
) -> None:
    meeting = Meeting(server, alice)
    challenge = meeting.challenge()
    renewed = rewarranted(federation, alice, expires_at=2**40).warrant.current
    alice.warrant.renew(renewed)
    assert meeting.client.answer(challenge).warrant == renewed


def test_an_admission_for_another_key_cannot_be_used(
    server: Node, alice: Node, bob: Node
) -> None:
    table = AdmissionTable(server.clock)
    _, bobs = Meeting(server, bob, table=table).admit()
    meeting = Meeting(server, alice, table=table)
    meeting.admit()
    for certificate in (bobs.certificate, b"", b"\x30\x00"):
        bad = Admission(certificate=certificate, expires_at=2**30, last_round=1)
        with pytest.raises(ProtocolError) as caught:
            meeting.client.finish(bad)
        assert caught.value.code == "admission-invalid"


def test_an_admission_until_after_all_dates_cannot_be_used(meeting: Meeting) -> None:
    _, admission = meeting.admit()
    endless = msgspec.structs.replace(admission, expires_at=2**53)
    with pytest.raises(ProtocolError) as caught:
        meeting.client.finish(endless)
    assert caught.value.code == "time-invalid"


def test_an_admission_lasts_no_longer_than_the_servers_own_warrant(
    federation: Federation, server: Node, alice: Node
) -> None:
    """Its table may say more: a server of a host that keeps its custodian away."""
    ends_at = START + timedelta(minutes=20)
    short = rewarranted(federation, server, expires_at=int(ends_at.timestamp()))
    meeting = Meeting(short, alice)
    assert meeting.finish().expires_at == ends_at
    [line] = meeting.table.admitted()
    assert line.expires_at > ends_at


def test_an_admission_lasts_no_longer_than_the_servers_own_evidence(
    tmp_path: Path, clock: HandClock
) -> None:
    """Of a client by identity the server has no evidence; its own has an end."""
    mixed = make_federation(tmp_path, change=lambda tree: by_identity(tree, "bob"))
    server, bob = (mixed.node(name, clock=clock) for name in ("aggregator", "bob"))
    standing = Meeting(server, bob).finish().server.standing
    assert isinstance(standing, Verdict)
    ends_at = standing.claims.not_after
    clock.now = ends_at - timedelta(minutes=20)
    server, bob = (mixed.node(name, clock=clock) for name in ("aggregator", "bob"))
    meeting = Meeting(server, bob)
    assert meeting.finish().expires_at == ends_at
    [line] = meeting.table.admitted()
    assert line.expires_at > ends_at


def test_steps_out_of_order_are_bugs(meeting: Meeting) -> None:
    warrant = meeting.client_node.warrant.current
    with pytest.raises(RuntimeError):
        meeting.client.answer(
            Challenge(nonce=b"", admission_key=b"", encryption_key=b"")
        )
    with pytest.raises(RuntimeError):
        meeting.client.prove(ServerProof(warrant=warrant, quote=b""))
    with pytest.raises(RuntimeError):
        meeting.client.finish(Admission(certificate=b"", expires_at=0, last_round=1))


def test_an_unknown_party_is_the_users_error(alice: Node) -> None:
    with pytest.raises(ConfigError):
        alice.check_warrant(
            alice.warrant.current,
            role="worker",
            party="mallory",
            tls_key=alice.identity.tls_spki,
        )


def test_a_servers_warrant_pushes_nobodys_clock(
    federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    """Only the own custodian's word, and collateral, say what time it is."""
    ahead = int(START.timestamp()) + 500
    Meeting(rewarranted(federation, server, issued_at=ahead), alice).finish()
    assert alice.clock() == START == clock()
