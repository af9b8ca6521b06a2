from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.made_audit import (
    ROUNDS,
    AuditedRun,
    audited_federation,
    code_of_log,
    lines_of,
    links_in,
    state_after,
    verify_bytes,
)
from tests.support.plan_tree import Tree, by_identity

from cloister.attestation.policy import Verdict
from cloister.errors import CloisterError, StorageError, VerificationError
from cloister.federation.audit_records import RunFailed
from cloister.federation.auditing.report import Anchors
from cloister.plan.keys import format_party_key
from cloister.plan.plan import plan_hash
from cloister.ratls.proofs import Identified


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AuditedRun:
    """A run that was done, to be read."""
    directory = tmp_path_factory.mktemp("whole")
    run = AuditedRun(audited_federation(directory), directory / "audit.jsonl")
    run.whole()
    return run


@pytest.fixture
def run(tmp_path: Path) -> AuditedRun:
    """A run that is about to begin."""
    return AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")


def test_a_whole_run_holds(whole: AuditedRun) -> None:
    heads = whole.head("alice"), whole.head("bob")
    report = whole.verify(*heads, anchors=whole.anchors)
    links = whole.links()
    assert (report.records, report.head) == (len(links), links[-1].head)
    assert (report.completed, report.rounds_recorded) == (ROUNDS, ROUNDS)
    assert report.plan == whole.federation.plan
    assert report.unproven == report.unsigned == 0
    assert [it.party for it in report.proofs] == ["alice", "bob"]
    assert report.seal is not None
    assert report.seal.recipients == whole.federation.plan.recipients
    assert report.seal.state == state_after(ROUNDS).hex()
    assert report.countersigned is not None
    assert report.countersigned.record == len(links) - 2
    assert report.clock_ahead_seconds == 0


def test_a_report_says_who_wrote_the_log_and_who_took_part(whole: AuditedRun) -> None:
    report = whole.verify()
    [server] = report.servers
    assert (server.epoch, server.skipped, server.lost) == (1, 0, 0)
    assert server.verdict.claims.simulated
    assert [(it.party, it.epoch, it.renewed) for it in report.admissions] == [
        ("alice", 1, False),
        ("bob", 1, False),
    ]
    assert all(isinstance(it.standing, Verdict) for it in report.admissions)


def test_a_report_says_what_was_compared(whole: AuditedRun) -> None:
    keys = {name: format_party_key(key) for name, key in whole.federation.keys.items()}
    assert whole.verify().keys_not_compared == keys
    alices = whole.verify(anchors=Anchors(party_keys={"alice": keys["alice"]}))
    assert alices.keys_compared == ("alice",)
    assert set(alices.keys_not_compared) == {"aggregator", "bob"}
    assert not alices.plan_compared
    planned = whole.verify(anchors=Anchors(plan_hash=plan_hash(whole.federation.plan)))
    assert planned.plan_compared
    assert planned.keys_not_compared == {}


def test_time_is_bounded_by_what_others_signed(whole: AuditedRun) -> None:
    report = whole.verify()
    said = {it.what: it.at for it in report.signed_times}
    assert said["a warrant of 'bob'"] >= said["a warrant of 'alice'"]
    assert "the collateral of a platform" in said
    assert any(what.startswith("the consent of") for what in said)
    assert all(at <= report.ended.at for at in said.values())


def test_a_run_whose_workers_have_keys_alone_holds(tmp_path: Path) -> None:
    def change(tree: Tree) -> Tree:
        return by_identity(tree, "alice", "bob")

    run = AuditedRun(
        audited_federation(tmp_path, change=change), tmp_path / "audit.jsonl"
    )
    run.whole()
    report = run.verify()
    standings = [it.standing for it in report.admissions]
    assert all(isinstance(it, Identified) for it in standings)


def test_a_run_that_was_begun_again_holds(run: AuditedRun) -> None:
    run.begin()
    run.admit_all()
    run.train(2)
    run.log.close()
    # From the beginning: two rounds are lost. A server between them wrote nothing.
    run.begin(epoch=3)
    run.admit_all(epoch=2)
    run.train()
    run.seal()
    run.log.close()
    report = run.verify(run.head("alice"))
    first, second = report.servers
    assert (first.epoch, first.lost, second.epoch) == (1, 0, 3)
    assert (second.lost, second.skipped, second.completed) == (2, 1, 0)
    assert (report.completed, report.rounds_recorded) == (ROUNDS, 2 + ROUNDS)
    assert report.seal is not None


def test_a_server_whose_warrant_was_renewed_by_the_way_carries_on(
    run: AuditedRun,
) -> None:
    """A deposit that finds its line broken gets a fresh warrant, and tells nobody."""
    run.begin()
    run.admit_all()
    run.train(1)
    for hours in (11, 11, 11):
        run.clock.forward(timedelta(hours=hours))
        key = run.server.identity.tls_spki
        run.server.warrant.renew(
            run.federation.warrant("aggregator", key, issued_at=run.clock())
        )
        run.admit_all(epoch=run.workers["alice"].warrant.current.terms.epoch + 1)
        run.complete(run.publish()) if run.completed < ROUNDS else run.seal()
    run.log.close()
    assert run.verify(run.head("alice")).seal is not None


def test_a_restart_says_from_where_on_the_former_server_may_be_cut(
    run: AuditedRun,
) -> None:
    run.begin()
    run.admit_all()
    run.log.close()
    killed = len(run.links()) - 1
    run.begin(epoch=2)
    run.log.run_failed(StorageError("the disk is full", code="disk-full"), state=None)
    run.log.close()
    run.begin(epoch=3)
    run.log.close()
    first, second, third = run.verify().servers
    assert first.cut_after is None
    assert second.cut_after is not None
    assert second.cut_after.record == killed
    # It said itself that nothing follows.
    assert third.cut_after is None


def test_a_failed_run_holds(run: AuditedRun) -> None:
    run.begin()
    run.admit("alice")
    run.log.run_failed(StorageError("the disk is full", code="disk-full"), state=None)
    run.log.close()
    report = run.verify()
    assert report.counted.failures == 1
    assert report.seal is None
    assert report.completed == 0


def test_a_log_is_verified_while_it_is_written(run: AuditedRun) -> None:
    run.begin()
    for party in ("alice", "bob"):
        run.admit(party)
        assert run.verify().admissions[-1].party == party
    run.train(1)
    assert run.verify().completed == 1


def test_what_a_server_wrote_that_was_never_introduced_counts_for_nothing(
    run: AuditedRun,
) -> None:
    run.begin()
    run.admit("alice")
    collateral = run.entries()[1]
    former = run.links()[-1]
    run.server = run.federation.node("aggregator", clock=run.clock, epoch=2)
    run.lie(collateral)
    report = run.verify()
    assert (report.unsigned, report.records) == (1, former.seq + 1)
    assert report.head == former.head


def test_an_empty_log_is_none() -> None:
    assert code_of_log(b"") == "audit-empty"


def test_a_log_that_opens_with_something_else_is_refused(run: AuditedRun) -> None:
    run.begin()
    run.path.unlink()
    run.lie(RunFailed(code="x", reason="y"))
    assert code_of_log(run.path.read_bytes()) == "audit-opening"


@pytest.mark.parametrize(
    "entry",
    [
        b'{"kind":"invented"}',
        b"{}",
        b'{"kind":"run-failed","code":"x"}',
        b'{"kind":"run-failed","code":"x","reason":"y","more":1}',
        b'{"kind":"run-failed","code":"x","code":"x","reason":"y"}',
        b'{"kind":"run-failed","reason":"y","code":"x"}',
        b'{"code":"x","kind":"run-failed","reason":"y"}',
    ],
)
def test_a_record_that_no_server_writes_is_refused(
    run: AuditedRun, entry: bytes
) -> None:
    run.begin()
    run.lie(entry)
    with pytest.raises(StorageError) as caught:
        run.verify()
    assert caught.value.code == "audit-malformed"
    assert "line 4" in caught.value.what


def test_an_error_names_the_line(whole: AuditedRun) -> None:
    links = whole.links()
    forged = replace(
        links[5],
        envelope=replace(links[5].envelope, signature=links[4].envelope.signature),
    )
    with pytest.raises(VerificationError) as caught:
        verify_bytes(lines_of(*links[:5], forged, *links[6:]))
    assert caught.value.code == "audit-signature"
    assert caught.value.what.startswith("line 6 ")


def test_a_second_opening_is_refused(run: AuditedRun) -> None:
    run.begin()
    opening = run.entries()[0]
    run.lie(opening)
    assert code_of_log(run.path.read_bytes()) == "audit-misplaced"


@given(st.data())
def test_no_flipped_bit_leaves_a_good_log_that_says_something_else(
    whole: AuditedRun, data: st.DataObject
) -> None:
    log = whole.path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(log) - 1))
    changed = bytearray(log)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CloisterError) as caught:
        verify_bytes(bytes(changed))
    assert caught.value.code.startswith("audit-")
    assert isinstance(caught.value, VerificationError | StorageError)


@given(st.data())
def test_a_log_that_is_cut_anywhere_is_refused_where_its_head_is_known(
    whole: AuditedRun, data: st.DataObject
) -> None:
    log = whole.path.read_bytes()
    end = data.draw(st.integers(0, len(log) - 1))
    with pytest.raises(CloisterError) as caught:
        verify_bytes(log[:end], whole.head("bob"))
    assert isinstance(caught.value, VerificationError | StorageError)


@given(st.data())
def test_lines_in_another_order_are_refused(
    whole: AuditedRun, data: st.DataObject
) -> None:
    links = links_in(whole.path.read_bytes())
    order = data.draw(st.permutations(links))
    if order == links:
        return
    assert code_of_log(lines_of(*order)) == "audit-order"


def test_a_payload_of_another_type_is_refused(whole: AuditedRun) -> None:
    links = whole.links()
    other = replace(links[0].envelope, payload_type="application/json")
    forged = replace(links[0], envelope=other)
    assert code_of_log(lines_of(forged, *links[1:])) == "audit-malformed"
