from __future__ import annotations

import contextlib
import resource
import stat
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.made_audit import MODEL, ROUNDS, AuditedRun, state_after
from tests.support.plan_tree import measurement_of
from tests.support.published_collateral import publish, up_to_date
from tests.support.run_audit import open_log_of, participant

from cloister.attestation.collateral import parse_collateral
from cloister.errors import (
    AppraisalError,
    ProtocolError,
    StorageError,
    VerificationError,
)
from cloister.federation.audit_log import AuditLog
from cloister.federation.audit_records import (
    AdmissionWithdrawn,
    CollateralUsed,
    ModelSealed,
    NodeAdmitted,
    NodeRefused,
    RefusalsCounted,
    RoundCompleted,
    RunFailed,
    RunOpened,
    ServerIntroduced,
    WarrantRenewed,
)
from cloister.federation.audit_signing import verify_link
from cloister.federation.refusal_budget import RECORDED_PER_MINUTE, RefusalBudget
from cloister.plan.consent import parse_consent, verify_consent
from cloister.plan.plan import parse_plan, plan_hash
from cloister.ratls.admission_table import Peer
from cloister.ratls.audit_key import AuditKey, verify_audit_key
from cloister.ratls.identity import Spki
from cloister.ratls.node import Node
from cloister.ratls.proofs import Identified
from cloister.ratls.testimony import collateral_sha256, verify_testimony
from cloister.ratls.warrant import Warrant, instant
from cloister.storage.audit_chain import FIRST

REFUSED = VerificationError("not this one", code="update-round", got="round 9")


@pytest.fixture
def story(federation: Federation, tmp_path: Path) -> Iterator[AuditedRun]:
    """A run whose server is introduced."""
    made = AuditedRun(federation, tmp_path / "audit.jsonl")
    made.begin()
    yield made
    made.log.close()


def peer(party: str = "alice") -> Peer:
    return Peer(
        role="worker",
        party=party,
        epoch=1,
        tls_key=Spki(b"tls"),
        encryption_key=bytes(32),
        standing=Identified(party_key="ed25519:..."),
    )


@contextlib.contextmanager
def no_more_room(path: Path) -> Iterator[None]:
    """A disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_log_begins_with_the_plan_the_consents_and_the_server(
    story: AuditedRun,
) -> None:
    opened, collateral, introduced = story.entries()
    plan = story.federation.plan
    assert isinstance(opened, RunOpened)
    assert plan_hash(parse_plan(opened.plan)) == opened.plan_hash == plan_hash(plan)
    for party, text in zip(plan.party, opened.consents, strict=True):
        consent = parse_consent(text)
        verify_consent(consent, plan=plan, party=party.name, at=story.clock())
    assert isinstance(collateral, CollateralUsed)
    assert collateral.sha256 == collateral_sha256(collateral.text)
    assert isinstance(introduced, ServerIntroduced)
    assert introduced.warrant == story.server.warrant.current
    assert (introduced.completed, introduced.restart) == (0, False)
    assert introduced.state == state_after(0)
    assert stat.S_IMODE(story.path.stat().st_mode) == 0o600


def test_the_introduction_is_evidence_over_the_keys_and_the_head_before(
    story: AuditedRun,
) -> None:
    introduced, link = story.entries()[2], story.links()[2]
    collateral = story.entries()[1]
    assert isinstance(introduced, ServerIntroduced)
    assert isinstance(collateral, CollateralUsed)
    assert introduced.collateral == collateral.sha256
    node = story.server
    key = AuditKey(
        run_id=node.plan.run_id,
        plan_hash=node.plan_hash,
        party="aggregator",
        epoch=1,
        tls_key=node.identity.tls_spki,
        admission_key=Spki(introduced.admission_key),
        encryption_key=introduced.encryption_key,
        previous_head=bytes.fromhex(link.previous),
    )
    verdict = verify_audit_key(
        introduced.quote,
        key=key,
        collateral=parse_collateral(collateral.text),
        policy=node.plan.policy_of("aggregator"),
        root=node.appraiser.root,
        at=story.clock(),
    )
    assert verdict.claims.simulated


def test_every_record_is_signed_by_the_server(story: AuditedRun) -> None:
    story.admit_all()
    story.train()
    story.seal()
    for link in story.links():
        verify_link(link, key=story.server.identity.tls_spki)


def test_a_server_that_its_own_plan_refuses_writes_nothing(
    federation: Federation, tmp_path: Path
) -> None:
    other = federation.node("aggregator", measurement=measurement_of("worker"))
    with open_log_of(other, tmp_path) as log:
        with pytest.raises(AppraisalError) as caught:
            log.introduce(
                completed=0, state=bytes(32), admission_key=other.identity.tls_spki
            )
        assert caught.value.code == "appraisal-measurement"
        assert log.length == 0
        with pytest.raises(RuntimeError):
            log.run_failed(REFUSED, state=None)


def test_a_server_is_introduced_first_and_once(story: AuditedRun) -> None:
    with pytest.raises(RuntimeError):
        story.log.introduce(completed=0, state=bytes(32), admission_key=Spki(b""))


def test_an_admission_is_recorded_with_all_that_shows_it(story: AuditedRun) -> None:
    alice = story.admit("alice")
    collateral, admitted = story.entries()[3:]
    assert isinstance(collateral, CollateralUsed)  # of another TEE than the server's
    assert isinstance(admitted, NodeAdmitted)
    assert admitted.verdict["peer"] == "alice"
    assert admitted.verdict["simulated"] is True
    assert admitted.last_round == alice.plan.admission.rounds
    standing = verify_testimony(
        admitted.testimony,
        plan=alice.plan,
        plan_hash=alice.plan_hash,
        collateral=parse_collateral(collateral.text),
        root=alice.appraiser.root,
        at=story.clock(),
    )
    assert not isinstance(standing, Identified)


def test_collateral_is_written_once_and_again_when_it_changes(tmp_path: Path) -> None:
    story = AuditedRun(make_federation(tmp_path / "own"), tmp_path / "audit.jsonl")
    story.begin()
    for epoch in (1, 2):
        story.admit("alice", epoch=epoch)
    story.admit("bob")  # of the server's own TEE
    kinds = [type(entry) for entry in story.entries()]
    assert kinds.count(CollateralUsed) == 2
    publish(story.federation, up_to_date("sgx"))
    story.admit("bob", epoch=2)
    kinds = [type(entry) for entry in story.entries()]
    assert kinds[-2:] == [CollateralUsed, NodeAdmitted]
    assert kinds.count(CollateralUsed) == 3
    story.log.close()


def test_a_round_is_recorded_with_its_participants_and_changes_the_head(
    story: AuditedRun,
) -> None:
    sent = story.log.head
    parts = (participant("alice"), participant("bob"))
    story.log.round_completed(1, head=sent, participants=parts, state=None)
    story.log.round_completed(
        2, head=story.log.head, participants=parts, state=state_after(2)
    )
    first, second = story.entries()[-2:]
    assert first == RoundCompleted(
        round=1, head=sent.hex(), participants=parts, state=None
    )
    assert isinstance(second, RoundCompleted)
    assert second.state == state_after(2).hex()
    assert second.head == story.links()[-2].head
    assert story.log.head.hex() == story.links()[-1].head


def test_the_end_is_recorded_with_the_sealed_model_and_who_reported(
    story: AuditedRun,
) -> None:
    story.admit_all()
    story.train()
    story.seal()
    sealed = story.entries()[-1]
    assert isinstance(sealed, ModelSealed)
    assert sealed.size_bytes == len(MODEL)
    assert sealed.recipients == story.federation.plan.recipients
    assert [part.party for part in sealed.reports] == ["alice", "bob"]
    assert sealed.head == story.links()[-2].head


def test_other_decisions_are_recorded_in_a_line(story: AuditedRun) -> None:
    log, table = story.log, story._table
    story.admit("alice")
    [admitted] = table.admitted()
    log.admission_withdrawn(admitted, REFUSED)
    story.clock.forward(timedelta(minutes=5))
    log.warrant_renewed(renewed(story))
    log.run_failed(ProtocolError("gave up\x1b[2J", code="worker-missing"), state=None)
    withdrawn, carried, failed = story.entries()[-3:]
    assert withdrawn == AdmissionWithdrawn(
        party="alice",
        tls_key_sha256=admitted.peer.node.key.hex(),
        code="update-round",
        reason=str(REFUSED),
    )
    assert carried == WarrantRenewed(warrant=story.server.warrant.current)
    # Nothing in it does anything to a terminal.
    assert failed == RunFailed(code="worker-missing", reason="gave up [2J")


def renewed(story: AuditedRun) -> Warrant:
    """Has the server hold a fresh warrant, as a custodian's line does by the way."""
    node = story.server
    fresh = story.federation.warrant(
        "aggregator", node.identity.tls_spki, issued_at=story.clock()
    )
    node.warrant.renew(fresh)
    return fresh


def test_a_warrant_is_recorded_once_and_again_when_it_changes(
    story: AuditedRun,
) -> None:
    story.log.warrant_renewed(story.server.warrant.current)
    assert story.log.length == 3
    story.clock.forward(timedelta(minutes=5))
    fresh = renewed(story)
    for _ in range(3):
        story.log.warrant_renewed(story.server.warrant.current)
    assert story.entries()[3:] == [WarrantRenewed(warrant=fresh)]


def test_a_warrant_that_has_ended_is_not_recorded(story: AuditedRun) -> None:
    fresh = renewed(story)
    story.clock.now = instant(fresh.terms.expires_at)
    story.log.warrant_renewed(fresh)
    assert story.log.length == 3


def test_a_round_and_a_seal_rest_on_a_warrant_on_record(story: AuditedRun) -> None:
    story.admit_all()
    for act in (story.train, story.seal):
        story.clock.forward(timedelta(minutes=5))
        fresh, before = renewed(story), story.log.length
        act()
        assert story.entries()[before] == WarrantRenewed(warrant=fresh)
    assert isinstance(story.entries()[-1], ModelSealed)
    assert story.log.sealed


def test_whoever_listens_is_told_of_every_record_that_is_no_round(
    story: AuditedRun,
) -> None:
    heads: list[bytes] = []
    with story.log.telling(lambda: heads.append(story.log.head)):
        story.admit("alice")
        [admitted] = story._table.admitted()
        story.log.admission_withdrawn(admitted, REFUSED)
        story.log.call_refused(peer(), REFUSED)
        story.clock.forward(timedelta(minutes=5))
        renewed(story)
        story.log.warrant_renewed(story.server.warrant.current)
        links = story.links()
        # The collateral comes with the admission.
        assert [head.hex() for head in heads] == [it.head for it in links[4:]]
        story.log.warrant_renewed(story.server.warrant.current)
        story.log.round_completed(1, head=bytes(32), participants=(), state=None)
    story.log.call_refused(peer(), REFUSED)
    assert len(heads) == 4


def test_refusals_at_the_door_and_in_calls_are_told_apart(story: AuditedRun) -> None:
    story.admit("alice")
    admitted = story.entries()[-1]
    assert isinstance(admitted, NodeAdmitted)
    long = VerificationError("x" * 5000, code="y" * 500)
    story.log.node_refused(
        admitted.testimony, None, role="worker", party="alice", error=long
    )
    story.log.call_refused(peer("bob"), REFUSED)
    door, call = story.entries()[-2:]
    assert isinstance(door, NodeRefused)
    assert (door.where, door.testimony) == ("enrolment", admitted.testimony)
    assert (len(door.code), len(door.reason)) == (64, 600)
    assert isinstance(call, NodeRefused)
    assert (call.where, call.party, call.testimony) == ("training", "bob", None)


def counted(story: AuditedRun) -> list[tuple[str, int]]:
    return [
        (entry.party, entry.count)
        for entry in story.entries()
        if isinstance(entry, RefusalsCounted)
    ]


def test_a_flood_of_refusals_is_counted_when_its_minute_is_over_or_the_run_ends(
    story: AuditedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(story.log, "_refusals", RefusalBudget(lambda: now[0]))
    for _ in range(RECORDED_PER_MINUTE + 5):
        story.log.call_refused(peer("alice"), REFUSED)
    story.log.call_refused(peer("bob"), REFUSED)
    refused = [it for it in story.entries() if isinstance(it, NodeRefused)]
    assert [it.party for it in refused] == [*RECORDED_PER_MINUTE * ["alice"], "bob"]
    assert counted(story) == []
    now[0] = 60.0
    story.log.round_completed(1, head=bytes(32), participants=(), state=None)
    assert counted(story) == [("alice", 5)]
    for _ in range(RECORDED_PER_MINUTE + 2):
        story.log.call_refused(peer("bob"), REFUSED)
    story.log.run_failed(REFUSED, state=None)
    assert counted(story) == [("alice", 5), ("bob", 2)]
    assert isinstance(story.entries()[-1], RunFailed)


def test_what_was_only_counted_is_written_when_the_log_is_closed(
    story: AuditedRun,
) -> None:
    for _ in range(RECORDED_PER_MINUTE + 5):
        story.log.call_refused(peer("alice"), REFUSED)
    story.log.close()
    story.log.close()
    assert counted(story) == [("alice", 5)]


def test_what_cannot_be_written_is_an_error_and_leaves_the_log_whole(
    story: AuditedRun,
) -> None:
    head = story.log.head
    with no_more_room(story.path), pytest.raises(StorageError) as caught:
        story.log.round_completed(1, head=head, participants=(), state=None)
    assert caught.value.code == "audit-unwritable"
    assert story.log.head == head == bytes.fromhex(story.links()[-1].head)
    with no_more_room(story.path), pytest.raises(StorageError):
        story.admit("alice")
    assert story._table.admitted() == ()
    with no_more_room(story.path):
        story.log.close()


def test_time_in_the_log_never_goes_back(story: AuditedRun) -> None:
    story.log.call_refused(peer(), REFUSED)
    story.clock.forward(timedelta(hours=-1))
    story.log.call_refused(peer(), REFUSED)
    times = [link.at_ms for link in story.links()]
    assert times == sorted(times)


def test_many_threads_write_one_chain(story: AuditedRun) -> None:
    def refuse(log: AuditLog, party: str) -> None:
        for _ in range(20):
            log.call_refused(peer(party), REFUSED)

    threads = [
        threading.Thread(target=refuse, args=(story.log, party))
        for party in ("alice", "bob")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(story.links()) == 3 + 40


def test_an_empty_log_has_a_head_of_zeros(server: Node, tmp_path: Path) -> None:
    with open_log_of(server, tmp_path) as log:
        assert log.head.hex() == FIRST
        assert log.length == log.dropped_bytes == 0


def test_the_log_says_how_far_the_run_is(
    federation: Federation, tmp_path: Path
) -> None:
    story = AuditedRun(federation, tmp_path / "audit.jsonl")
    story.begin()
    story.admit_all()
    assert (story.log.completed, story.log.marked) == (0, 0)
    sent = story.publish()
    story.log.round_completed(
        1, head=sent.head, participants=story.participants(sent), state=None
    )
    story.log.sync()
    assert (story.log.completed, story.log.marked) == (1, 0)
    story.log.run_failed(REFUSED, state=state_after(1))
    assert (story.log.completed, story.log.marked) == (1, 1)
    failed = story.entries()[-1]
    assert isinstance(failed, RunFailed)
    assert failed.state == state_after(1).hex()
    story.log.close()
    story.begin(epoch=2, completed=1)
    assert (story.log.completed, story.log.marked) == (1, 1)
    assert not story.log.sealed
    story.log.close()


def test_nothing_follows_the_end_of_a_run(
    federation: Federation, tmp_path: Path
) -> None:
    """Its ports are open until the workers have heard of it."""
    story = AuditedRun(federation, tmp_path / "audit.jsonl")
    story.whole()
    length = story.log.length
    with pytest.raises(ProtocolError) as caught:
        story.admit("alice", epoch=2)
    assert caught.value.code == "run-over"
    with pytest.raises(ProtocolError) as caught:
        story.log.run_failed(REFUSED, state=None)
    assert caught.value.code == "run-over"
    story.log.call_refused(peer("alice"), REFUSED)
    [admitted, *_] = story._table.admitted()
    story.log.admission_withdrawn(admitted, REFUSED)
    story.clock.forward(timedelta(minutes=5))
    story.log.warrant_renewed(renewed(story))
    story.log.close()
    assert len(story.links()) == length
    with open_log_of(federation.node("aggregator", epoch=2), tmp_path) as log:
        assert log.sealed
        assert log.completed == ROUNDS


def test_the_durable_head_is_that_of_the_last_record_on_the_disk(
    federation: Federation, tmp_path: Path
) -> None:
    """Rounds are synced later; a power cut may take them, and what is in a mark not."""
    story = AuditedRun(federation, tmp_path / "audit.jsonl")
    story.begin()
    story.admit_all()
    log = story.log
    assert log.durable_head == log.head
    before, sent = log.head, story.publish()
    log.round_completed(1, head=sent.head, participants=(), state=None)
    assert log.durable_head == before != log.head
    log.sync()
    assert log.durable_head == log.head
    log.round_completed(2, head=log.head, participants=(), state=state_after(2))
    assert log.durable_head == log.head
    log.round_completed(3, head=log.head, participants=(), state=None)
    log.call_refused(peer(), REFUSED)
    assert log.durable_head == log.head
    with no_more_room(story.path), pytest.raises(StorageError):
        log.run_failed(REFUSED, state=None)
    assert log.durable_head == log.head
    log.close()
