from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.support.made_audit import (
    ROUNDS,
    STEP,
    AuditedRun,
    audited_federation,
    code_of_log,
    lines_of,
    state_after,
)

from cloister.federation.auditing.heads import verify_signed_head
from cloister.federation.auditing.opening import Opening
from cloister.federation.auditing.report import Anchors, SignedTime
from cloister.plan.plan import plan_hash
from cloister.ratls.mark import Mark
from cloister.ratls.signed_head import HEAD_TYPE, encode_head, parse_head
from cloister.storage.dsse import PAYLOAD_TYPE, Envelope


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AuditedRun:
    directory = tmp_path_factory.mktemp("whole")
    run = AuditedRun(audited_federation(directory), directory / "audit.jsonl")
    run.whole()
    return run


def signed(run: AuditedRun, envelope: Envelope, **changes: object) -> Envelope:
    """Returns a statement that says something else, signed again."""
    head = msgspec.structs.replace(parse_head(envelope.payload), **changes)
    changed = replace(envelope, payload=encode_head(head))
    key = run.federation.keys["alice"]
    return replace(changed, signature=key.sign(changed.signed))


def opening_of(run: AuditedRun) -> Opening:
    return Opening(
        plan=run.federation.plan,
        plan_hash=plan_hash(run.federation.plan),
        consented=SignedTime(what="a consent", at=run.clock()),
        keys_compared=(),
        plan_compared=False,
    )


def test_a_statement_is_returned_as_it_was_signed(whole: AuditedRun) -> None:
    envelope = whole.head("alice")
    assert verify_signed_head(envelope, opening=opening_of(whole)) == parse_head(
        envelope.payload
    )


def test_a_statement_of_another_type_is_none(whole: AuditedRun) -> None:
    other = replace(whole.head("alice"), payload_type=PAYLOAD_TYPE)
    assert code_of_log(whole.path.read_bytes(), other) == "audit-head-malformed"
    assert HEAD_TYPE != PAYLOAD_TYPE


def test_each_field_of_a_statement_is_held_against_the_log(whole: AuditedRun) -> None:
    log, head = whole.path.read_bytes(), whole.head("alice")
    for changes, expected in (
        ({"run_id": "blobs/b"}, "audit-head-foreign"),
        ({"plan_hash": bytes(32)}, "audit-head-foreign"),
        ({"party": "carol"}, "audit-head-foreign"),
        ({"party": "bob"}, "audit-head-signature"),
        ({"round": ROUNDS - 1}, "audit-head-differs"),
        ({"state": bytes(32)}, "audit-head-differs"),
        ({"server_epoch": 2}, "audit-head-differs"),
        ({"server_key": bytes(32)}, "audit-head-differs"),
        ({"at": 2**53}, "audit-time-invalid"),
        ({}, "holds"),
    ):
        assert code_of_log(log, signed(whole, head, **changes)) == expected, changes


def test_every_statement_on_one_head_is_held_against_the_log(whole: AuditedRun) -> None:
    log, alices, bobs = (
        whole.path.read_bytes(),
        whole.head("alice"),
        whole.head("bob"),
    )
    assert code_of_log(log, alices, bobs) == "holds"
    lie = signed(whole, alices, state=bytes(32))
    for heads in ((bobs, lie), (lie, bobs)):
        assert code_of_log(log, *heads) == "audit-head-differs"


def test_a_changed_statement_is_not_signed(whole: AuditedRun) -> None:
    head = whole.head("alice")
    for forged in (
        replace(head, payload=head.payload.replace(b'"round":3', b'"round":2')),
        replace(head, keyid=whole.head("bob").keyid),
        replace(head, signature=whole.head("bob").signature),
    ):
        code = code_of_log(whole.path.read_bytes(), forged)
        assert code == "audit-head-signature"


def test_each_mark_on_the_way_proves_the_log_up_to_it(tmp_path: Path) -> None:
    run = AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")
    run.begin()
    heads = [run.head("aggregator")]
    run.admit_all()
    for _ in range(ROUNDS):
        run.complete(run.publish())
        heads.append(run.head("alice"))
    run.seal()
    run.log.close()
    report = run.verify(*heads, anchors=run.anchors)
    assert [it.upto.record for it in report.proofs] == [2, 6, 7, 8]
    assert [it.round for it in report.proofs] == [0, 1, 2, 3]
    assert report.unproven == 1
    assert report.proven is not None
    assert report.proven.party == "alice"
    # Whoever invents a log invents its parties, and signs heads for them.
    unknown = run.verify(*heads)
    assert [it.upto.record for it in unknown.proofs] == [2, 6, 7, 8]
    assert (unknown.proven, unknown.unproven) == (None, unknown.records)
    # Of those whose keys are known, the one that reaches furthest counts.
    key = run.federation.plan.find_party("aggregator").key
    some = run.verify(*heads, anchors=Anchors(party_keys={"aggregator": key}))
    assert some.proven is not None
    assert (some.proven.upto.record, some.unproven) == (2, some.records - 3)


def unknown(mark: Mark, **changes: object) -> Mark:
    found: Mark = msgspec.structs.replace(mark, audit_head=bytes(range(32)), **changes)
    return found


def test_a_head_that_is_not_there_is_a_cut_or_a_fork(tmp_path: Path) -> None:
    run = AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")
    run.begin()
    first = run.mark()
    run.log.close()
    run.begin(epoch=3)
    run.admit_all()
    run.train(2)
    run.log.close()
    mark, log = run.mark(), run.path.read_bytes()
    for changes, expected in (
        # The same server, here or further on.
        ({}, "audit-cut"),
        ({"round": 3}, "audit-cut"),
        # A server after it.
        ({"server_epoch": 4, "server_key": bytes(32)}, "audit-cut"),
        ({"server_epoch": 4, "server_key": bytes(32), "round": 0}, "audit-cut"),
        # The same server at a place that the log is past.
        ({"round": 1}, "audit-forked"),
        # Another server of the same epoch; one that wrote nothing here; one whose
        # successor is here.
        ({"server_key": bytes(32)}, "audit-forked"),
        ({"server_epoch": 2, "server_key": bytes(32)}, "audit-forked"),
        ({"server_epoch": 1, "server_key": first.server_key}, "audit-forked"),
    ):
        head = run.head("bob", unknown(mark, **changes))
        assert code_of_log(log, head) == expected, changes


def test_two_heads_of_which_one_is_not_here_are_a_fork(whole: AuditedRun) -> None:
    other = whole.head("bob", unknown(whole.mark(), round=2))
    code = code_of_log(whole.path.read_bytes(), whole.head("alice"), other)
    assert code == "audit-forked"


def test_a_clock_that_was_ahead_is_told(whole: AuditedRun) -> None:
    head = whole.head("alice")
    at = parse_head(head.payload).at
    report = whole.verify(signed(whole, head, at=at - 90))
    assert report.clock_ahead_seconds == 90
    assert whole.verify(signed(whole, head, at=at + 90)).clock_ahead_seconds == 0


def test_a_head_in_the_middle_of_an_opening_is_none_that_anybody_was_told(
    whole: AuditedRun,
) -> None:
    links = whole.links()
    mark = msgspec.structs.replace(
        whole.mark(),
        round=0,
        audit_head=bytes.fromhex(links[0].head),
    )
    code = code_of_log(lines_of(*links), whole.head("bob", mark))
    assert code == "audit-forked"


def test_a_mark_that_was_deposited_again_proves_up_to_its_later_head(
    tmp_path: Path,
) -> None:
    """Same round and state; what was recorded since is behind the head."""
    run = AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")
    run.begin()
    run.admit_all()
    run.train(1)
    mark = run.mark()
    sent = run.publish()
    run.clock.forward(STEP)
    run.log.round_completed(
        2, head=sent.head, participants=run.participants(sent), state=None
    )
    run.completed = 2
    run.admit("alice", epoch=2)
    again = msgspec.structs.replace(mark, audit_head=run.log.head)
    upto = len(run.links()) - 1
    proofs = run.verify(run.head("alice", mark), run.head("alice", again)).proofs
    assert [it.round for it in proofs] == [1, 1]
    assert proofs[1].upto.record == upto
    log = run.path.read_bytes()
    head = run.head("alice", again)
    others: list[dict[str, object]] = [
        {"round": 2},
        {"round": 0},
        {"state": state_after(2)},
    ]
    for changes in others:
        other = signed(run, head, **changes)
        assert code_of_log(log, other) == "audit-head-differs"
    # More was known than a log has that ends before the next mark; one that goes on
    # behind it is another one.
    assert code_of_log(lines_of(*run.links()[:-1]), head) == "audit-cut"
    run.train(3)
    later = msgspec.structs.replace(mark, audit_head=bytes(32))
    assert code_of_log(run.path.read_bytes(), run.head("alice", later)) == (
        "audit-forked"
    )
