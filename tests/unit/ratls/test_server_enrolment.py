from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from tests.support.asked_collateral import asking_node
from tests.support.audit import FullDisk, RecordedDoor
from tests.support.federation_in_memory import (
    START,
    Federation,
    HandClock,
    make_federation,
    quoting,
    rewarranted,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.meeting import Meeting, transcript_of
from tests.support.plan_tree import by_identity, measurement_of, put
from tests.support.refusals import code_of

from cloister.attestation.claims import TdxMeasurements
from cloister.attestation.collateral import parse_collateral
from cloister.attestation.policy import Verdict
from cloister.errors import ProtocolError, StorageError, VerificationError
from cloister.ratls.admission_table import AdmissionTable
from cloister.ratls.challenge import VERSION, Answer, EvidenceProof, IdentityProof
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.enrolment_pace import EnrolmentPace
from cloister.ratls.node import Node
from cloister.ratls.proofs import EvidenceProver, Identified, IdentityProver
from cloister.ratls.refusals import is_trouble
from cloister.ratls.testimony import collateral_sha256, verify_testimony

LIFE = timedelta(hours=12)  # the plan's default


def test_a_client_is_admitted_for_what_its_evidence_and_warrant_say(
    meeting: Meeting,
) -> None:
    peer, admission = meeting.admit()
    client = meeting.client_node
    assert (peer.role, peer.party, peer.epoch) == ("worker", "alice", 1)
    assert peer.tls_key == client.identity.tls_spki
    assert peer.encryption_key == client.identity.encryption_public
    assert isinstance(peer.standing, Verdict)
    assert isinstance(peer.standing.claims.measurements, TdxMeasurements)
    assert meeting.table.parties() == (peer,)
    issued = x509.load_der_x509_certificate(admission.certificate)
    issued.verify_directly_issued_by(meeting.authority.certificate)


def test_clients_of_both_kinds_of_tee_are_admitted_beside_each_other(
    server: Node, alice: Node, bob: Node
) -> None:
    table = AdmissionTable(server.clock)
    for client in (alice, bob):
        Meeting(server, client, table=table).finish()
    assert [peer.party for peer in table.parties()] == ["alice", "bob"]


def test_the_evidence_is_kept_to_be_judged_again(meeting: Meeting) -> None:
    proof = meeting.client_proof()
    assert isinstance(proof, EvidenceProof)
    peer, _ = meeting.server.admit(proof)
    [line] = meeting.table.admitted()
    assert (line.peer, line.quote) == (peer, proof.quote)
    meeting.server_node.appraise(
        proof.quote, party="alice", expected_report_data=line.report_data
    )


def test_a_party_by_identity_is_admitted_without_evidence(tmp_path: Path) -> None:
    mixed = make_federation(tmp_path, change=lambda tree: by_identity(tree, "bob"))
    meeting = Meeting(mixed.node("aggregator"), mixed.node("bob"))
    peer, admission = meeting.admit()
    assert peer.standing == Identified(party_key=mixed.plan.find_party("bob").key)
    [line] = meeting.table.admitted()
    assert line.quote is None
    # Nothing it showed expires, so it lapses by the plan's time and rounds alone.
    assert admission.expires_at == int((START + LIFE).timestamp())


def test_every_session_has_its_own_nonces(server: Node, alice: Node) -> None:
    first, second = Meeting(server, alice), Meeting(server, alice)
    assert first.challenge().nonce != second.challenge().nonce


def admission_of(meeting: Meeting) -> tuple[datetime, int]:
    """Returns when and after which round the admission lapses, as all three say."""
    _, admission = meeting.admit()
    [line] = meeting.table.admitted()
    certificate = x509.load_der_x509_certificate(admission.certificate)
    assert certificate.not_valid_after_utc == line.expires_at
    assert admission.expires_at == int(line.expires_at.timestamp())
    assert admission.last_round == line.last_round
    return line.expires_at, line.last_round


def refusal_now(meeting: Meeting) -> str:
    key = meeting.client_node.identity.tls_spki
    return code_of(lambda: meeting.table.check(key))


def test_an_admission_lasts_as_the_plan_says(tmp_path: Path, clock: HandClock) -> None:
    short = make_federation(
        tmp_path,
        change=lambda tree: put(
            tree, ("admission",), {"life_seconds": 1800, "rounds": 3}
        ),
    )
    nodes = [short.node(party, clock=clock) for party in ("aggregator", "alice")]
    meeting = Meeting(nodes[0], nodes[1])
    assert admission_of(meeting) == (START + timedelta(minutes=30), 3)
    meeting.table.advance(4)
    assert refusal_now(meeting) == "admission-lapsed"


def test_without_a_word_in_the_plan_it_lasts_half_a_day(
    meeting: Meeting, clock: HandClock
) -> None:
    assert admission_of(meeting) == (START + LIFE, 100_000)
    clock.forward(LIFE)
    assert refusal_now(meeting) == "admission-lapsed"


def test_rounds_count_from_the_one_that_runs(server: Node, alice: Node) -> None:
    table = AdmissionTable(server.clock)
    table.advance(7)
    _, last_round = admission_of(Meeting(server, alice, table=table))
    assert last_round == 100_006


def test_an_admission_does_not_outlive_the_warrant(
    federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    ends = int((START + timedelta(minutes=5)).timestamp())
    meeting = Meeting(server, rewarranted(federation, alice, expires_at=ends))
    assert admission_of(meeting)[0] == START + timedelta(minutes=5)
    clock.forward(timedelta(minutes=5))
    assert refusal_now(meeting) == "admission-lapsed"


def test_a_warrant_without_end_admits_for_half_a_day(
    federation: Federation, server: Node, alice: Node
) -> None:
    endless = rewarranted(federation, alice, expires_at=2**53)
    assert admission_of(Meeting(server, endless))[0] == START + LIFE


def test_a_warrant_that_ends_during_the_enrolment_admits_nobody(
    federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    """It was checked at message 4; what is recorded at message 7 must verify."""
    ends = int((START + timedelta(seconds=10)).timestamp())
    for seconds, code in ((8, "admitted"), (8.001, "warrant-expired"), (11, None)):
        clock.now = START
        meeting = Meeting(server, rewarranted(federation, alice, expires_at=ends))
        proof = meeting.client_proof()
        clock.forward(timedelta(seconds=seconds))
        if code == "admitted":
            _, admission = meeting.server.admit(proof)
            assert admission.expires_at == ends
            continue
        assert code_of(lambda: meeting.server.admit(proof)) == "warrant-expired"  # noqa: B023
        assert meeting.table.parties() == ()
        assert meeting.door.admitted == []


def test_evidence_that_is_about_to_end_admits_nobody(
    federation: Federation, meeting: Meeting
) -> None:
    verdict = meeting.server_node.appraise(
        meeting.client_node.platform.quote(bytes(64)),
        party="alice",
        expected_report_data=bytes(64),
    )
    late = HandClock(verdict.claims.not_after - timedelta(seconds=1.5))
    # Warranted by that clock; what ends is the collateral.
    begun = int(late().timestamp()) - 60
    server, alice = (
        rewarranted(
            federation,
            federation.node(party, clock=late),
            issued_at=begun,
            expires_at=begun + 86_400,
        )
        for party in ("aggregator", "alice")
    )
    ending = Meeting(server, alice)
    proof = ending.client_proof()
    with pytest.raises(VerificationError) as caught:
        ending.server.admit(proof)
    assert caught.value.code == "collateral-expired"
    # No judgement of the client, who may come again.
    assert is_trouble(caught.value)
    assert ending.table.parties() == ()


def test_an_admission_ends_at_the_second_that_is_told_and_recorded(
    meeting: Meeting, clock: HandClock
) -> None:
    clock.forward(timedelta(milliseconds=900))
    expires_at, _ = admission_of(meeting)
    assert expires_at == START + LIFE
    assert int(meeting.door.admitted[0].admitted.expires_at.timestamp()) == (
        expires_at.timestamp()
    )
    clock.now = expires_at - timedelta(microseconds=1)
    [peer] = meeting.table.parties()
    assert meeting.table.check(peer.tls_key) == peer
    clock.now = expires_at
    assert refusal_now(meeting) == "admission-lapsed"


def test_no_quote_is_made_for_a_party_that_enrols_too_often(
    server: Node, alice: Node, bob: Node
) -> None:
    counting = CountingPlatform(server.platform)
    busy, pace = quoting(server, counting), EnrolmentPace(2)
    for _ in range(2):
        Meeting(busy, alice, pace=pace).finish()
    meeting = Meeting(busy, alice, pace=pace)
    answer = meeting.answer()
    made = counting.quotes
    with pytest.raises(ProtocolError) as caught:
        meeting.server.prove(answer)
    assert caught.value.code == "server-busy"
    assert counting.quotes == made
    assert not meeting.server.proved
    Meeting(busy, bob, pace=pace).finish()


def test_a_node_that_was_replaced_takes_nothing_from_the_newer_one(
    federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    table, pace = AdmissionTable(server.clock), EnrolmentPace(2)
    newer = federation.node("alice", clock=clock, epoch=2)
    Meeting(server, newer, table=table, pace=pace).finish()
    for _ in range(3):
        older = Meeting(server, alice, table=table, pace=pace)
        assert code_of(older.server_proof) == "epoch-old"
    Meeting(server, newer, table=table, pace=pace).finish()


def test_an_admission_does_not_outlive_the_evidence(
    federation: Federation, meeting: Meeting
) -> None:
    verdict = meeting.server_node.appraise(
        meeting.client_node.platform.quote(bytes(64)),
        party="alice",
        expected_report_data=bytes(64),
    )
    late = HandClock(verdict.claims.not_after - timedelta(hours=1))
    nodes = (
        federation.node("aggregator", clock=late),
        federation.node("alice", clock=late),
    )
    assert admission_of(Meeting(*nodes))[0] == verdict.claims.not_after


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("version", VERSION - 1, "version-differs"),
        ("version", VERSION + 1, "version-differs"),
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


def test_a_stranger_cannot_try_out_names_of_runs_or_parties(meeting: Meeting) -> None:
    """Without the plan's hash every guess is answered alike."""
    hello = msgspec.structs.replace(meeting.hello(), plan_hash=bytes(32))
    heard = set()
    for run_id in (meeting.server_node.plan.run_id, "guessed/a"):
        for party in ("alice", "mallory"):
            guess = msgspec.structs.replace(hello, run_id=run_id, party=party)
            with pytest.raises(VerificationError) as caught:
                meeting.server.challenge(guess)
            heard.add((caught.value.code, caught.value.what))
    assert heard == {("plan-differs", "the client works under another plan")}


def test_the_server_cannot_enrol_with_itself(server: Node) -> None:
    assert code_of(Meeting(server, server).challenge) == "party-unknown"


def test_a_client_of_another_plan_is_refused(
    other_federation: Federation, server: Node
) -> None:
    stranger = other_federation.node("alice")
    hello = ClientEnrolment(stranger).hello()
    meeting = Meeting(server, stranger)
    assert code_of(lambda: meeting.server.challenge(hello)) == "plan-differs"


def test_no_quote_is_made_for_whoever_has_no_warrant(
    federation: Federation, server: Node, alice: Node
) -> None:
    counting = CountingPlatform(server.platform)
    expired = rewarranted(federation, alice, issued_at=0, expires_at=1)
    meeting = Meeting(quoting(server, counting), expired)
    answer = meeting.answer()
    made = counting.quotes
    assert code_of(lambda: meeting.server.prove(answer)) == "warrant-expired"
    assert counting.quotes == made


def test_the_same_node_renews_its_admission(
    server: Node, alice: Node, clock: HandClock
) -> None:
    table = AdmissionTable(server.clock)
    Meeting(server, alice, table=table).finish()
    clock.forward(LIFE / 2)
    table.advance(5)
    meeting = Meeting(server, alice, table=table)
    assert admission_of(meeting) == (START + 1.5 * LIFE, 100_004)
    assert len(table.parties()) == 1


def test_a_refused_renewal_leaves_the_admission_as_it_was(
    server: Node, alice: Node
) -> None:
    table = AdmissionTable(server.clock)
    Meeting(server, alice, table=table).finish()
    before = table.admitted()
    meeting = Meeting(server, alice, table=table)
    meeting.client_proof()
    bad = EvidenceProof(quote=alice.platform.quote(bytes(64)))
    assert code_of(lambda: meeting.server.admit(bad)) == "report-data"
    assert table.admitted() == before


def test_two_enrolments_at_once_with_one_epoch_admit_one(
    federation: Federation, server: Node, clock: HandClock
) -> None:
    table = AdmissionTable(server.clock)
    twins = [federation.node("alice", clock=clock) for _ in range(2)]
    first, second = (Meeting(server, twin, table=table) for twin in twins)
    proofs = [first.client_proof(), second.client_proof()]
    winner, _ = first.server.admit(proofs[0])
    assert code_of(lambda: second.server.admit(proofs[1])) == "epoch-forked"
    assert table.parties() == (winner,)


def test_a_node_that_was_overtaken_during_its_enrolment_is_refused(
    federation: Federation, server: Node, clock: HandClock
) -> None:
    table = AdmissionTable(server.clock)
    older = Meeting(server, federation.node("alice", clock=clock), table=table)
    proof = older.client_proof()
    newer = federation.node("alice", clock=clock, epoch=2)
    winner, _ = Meeting(server, newer, table=table).admit()
    assert code_of(lambda: older.server.admit(proof)) == "epoch-old"
    assert table.parties() == (winner,)


def test_steps_out_of_order_are_bugs(meeting: Meeting) -> None:
    warrant = meeting.client_node.warrant.current
    answer = Answer(warrant=warrant, signature=b"")
    proofs = (EvidenceProof(quote=b"q"), IdentityProof(signature=bytes(64)))
    with pytest.raises(RuntimeError):
        meeting.server.prove(answer)
    for proof in proofs:
        with pytest.raises(RuntimeError):
            meeting.server.admit(proof)
    meeting.challenge()
    for proof in proofs:
        with pytest.raises(RuntimeError):
            meeting.server.admit(proof)


def test_what_judging_takes_is_at_hand_before(federation: Federation) -> None:
    server, source = asking_node(federation, "aggregator")
    meeting = Meeting(server, federation.node("alice"))
    proof = meeting.client_proof()
    meeting.server.prepare(proof)
    assert source.asked == ["tdx"]
    assert meeting.table.parties() == ()
    meeting.server.admit(proof)
    assert [peer.party for peer in meeting.table.parties()] == ["alice"]


def test_nothing_is_at_hand_before_the_server_proved_itself(
    meeting: Meeting,
) -> None:
    proof = meeting.client_proof()
    fresh = Meeting(meeting.server_node, meeting.client_node)
    fresh.challenge()
    with pytest.raises(RuntimeError):
        fresh.server.prepare(proof)


@pytest.mark.parametrize("party", ["alice", "bob"])
def test_a_proof_of_the_other_kind_has_nobody_asked_for_collateral(
    tmp_path: Path, party: str
) -> None:
    """Bob is admitted by his key; alice must show evidence."""
    mixed = make_federation(tmp_path, change=lambda tree: by_identity(tree, "bob"))
    server, source = asking_node(mixed, "aggregator")
    meeting = Meeting(server, mixed.node(party))
    meeting.client_proof()
    transcript = transcript_of(meeting.server)
    wrong = (
        EvidenceProver(platform=mixed.platform("bob"))
        if party == "bob"
        else IdentityProver(key=mixed.keys["alice"])
    ).prove(transcript)
    assert code_of(lambda: meeting.server.prepare(wrong)) == "proof-kind"
    assert code_of(lambda: meeting.server.admit(wrong)) == "proof-kind"
    assert source.asked == []
    assert meeting.table.parties() == ()


def test_evidence_of_another_exchange_has_nobody_asked_for_collateral(
    federation: Federation,
) -> None:
    server, source = asking_node(federation, "aggregator")
    meeting = Meeting(server, federation.node("alice"))
    meeting.client_proof()
    replayed = EvidenceProof(quote=federation.platform("alice").quote(bytes(64)))
    assert code_of(lambda: meeting.server.prepare(replayed)) == "report-data"
    assert source.asked == []


# What is recorded.


def test_an_admission_is_recorded_with_all_that_it_rests_on(
    federation: Federation, meeting: Meeting
) -> None:
    peer, admission = meeting.admit()
    [it] = meeting.door.admitted
    [line] = meeting.table.admitted()
    assert it.admitted is line
    assert int(line.expires_at.timestamp()) == admission.expires_at
    assert it.collateral is not None
    assert it.testimony.collateral == collateral_sha256(it.collateral)
    standing = verify_testimony(
        it.testimony,
        plan=federation.plan,
        plan_hash=meeting.server_node.plan_hash,
        collateral=parse_collateral(it.collateral),
        root=federation.root.trust_root,
        at=START,
    )
    assert standing == peer.standing


def test_an_admission_by_identity_is_recorded_without_collateral(
    tmp_path: Path,
) -> None:
    mixed = make_federation(tmp_path, change=lambda tree: by_identity(tree, "bob"))
    meeting = Meeting(mixed.node("aggregator"), mixed.node("bob"))
    meeting.finish()
    [it] = meeting.door.admitted
    assert (it.collateral, it.testimony.collateral) == (None, None)
    assert isinstance(it.testimony.proof, IdentityProof)


def test_an_admission_takes_effect_after_it_is_recorded(
    server: Node, alice: Node
) -> None:
    table = AdmissionTable(server.clock)
    seen: list[tuple[object, ...]] = []
    door = RecordedDoor(look=lambda: seen.append(table.admitted()))
    first = Meeting(server, alice, table=table, door=door)
    first.finish()
    before = table.admitted()
    # A renewal likewise.
    Meeting(server, alice, table=table, door=door).finish()
    assert seen == [(), before]
    assert [it.admitted for it in door.admitted] == [*before, *table.admitted()]


def test_an_admission_that_cannot_be_recorded_does_not_happen(
    server: Node, alice: Node
) -> None:
    table = AdmissionTable(server.clock)
    door = FullDisk()
    meeting = Meeting(server, alice, table=table, door=door)
    with pytest.raises(StorageError):
        meeting.admit()
    assert (table.admitted(), door.tried) == ((), 1)


def test_a_renewal_that_cannot_be_recorded_leaves_the_admission_as_it_was(
    server: Node, alice: Node
) -> None:
    table = AdmissionTable(server.clock)
    Meeting(server, alice, table=table).finish()
    before = table.admitted()
    with pytest.raises(StorageError):
        Meeting(server, alice, table=table, door=FullDisk()).admit()
    assert table.admitted() == before


def test_who_is_refused_in_the_end_is_recorded_as_no_admission(
    federation: Federation, server: Node, clock: HandClock
) -> None:
    table, door = AdmissionTable(server.clock), RecordedDoor()
    twins = [federation.node("alice", clock=clock) for _ in range(2)]
    first, second = (Meeting(server, it, table=table, door=door) for it in twins)
    proofs = [first.client_proof(), second.client_proof()]
    first.server.admit(proofs[0])
    assert code_of(lambda: second.server.admit(proofs[1])) == "epoch-forked"
    assert [it.admitted for it in door.admitted] == list(table.admitted())


def test_nothing_is_kept_of_a_stranger(
    federation: Federation, server: Node, alice: Node
) -> None:
    meeting = Meeting(server, rewarranted(federation, alice, issued_at=0, expires_at=1))
    assert meeting.server.shown() is None
    answer = meeting.answer()
    assert meeting.server.shown() is None
    assert code_of(lambda: meeting.server.prove(answer)) == "warrant-expired"
    assert meeting.server.shown() is None
    assert not meeting.server.proved


def test_what_a_known_client_shows_is_kept_as_it_comes(meeting: Meeting) -> None:
    answer = meeting.answer()
    meeting.server.prove(answer)
    began = meeting.server.shown()
    assert began is not None
    assert meeting.server.proved
    assert began.testimony.warrant == answer.warrant
    assert (began.testimony.proof, began.collateral) == (None, None)
    bad = EvidenceProof(quote=meeting.client_node.platform.quote(bytes(64)))
    assert code_of(lambda: meeting.server.prepare(bad)) == "report-data"
    refused = meeting.server.shown()
    assert refused is not None
    assert (refused.testimony.proof, refused.collateral) == (bad, None)


def test_a_superseded_node_is_known_and_may_not_go_on(
    federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    table = AdmissionTable(server.clock)
    newer = federation.node("alice", clock=clock, epoch=2)
    Meeting(server, newer, table=table).finish()
    meeting = Meeting(server, alice, table=table)
    assert code_of(meeting.server_proof) == "epoch-old"
    known = meeting.server.shown()
    assert known is not None
    assert known.testimony.warrant == alice.warrant.current
    assert not meeting.server.proved
    with pytest.raises(RuntimeError):
        meeting.server.admit(EvidenceProof(quote=b"q"))


def test_a_refusal_names_the_collateral_that_it_rests_on(
    federation: Federation, server: Node, alice: Node
) -> None:
    other = measurement_of("worker", task_source=b"other")
    changed = quoting(alice, federation.platform("alice", measurement=other))
    meeting = Meeting(server, changed)
    proof = meeting.client_proof()
    assert code_of(lambda: meeting.server.admit(proof)) == "appraisal-measurement"
    known = meeting.server.shown()
    assert known is not None
    assert known.collateral is not None
    assert known.testimony.collateral == collateral_sha256(known.collateral)
    assert (known.testimony.proof, meeting.door.admitted) == (proof, [])
