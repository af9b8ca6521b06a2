from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.support.made_audit import (
    ROUNDS,
    AuditedRun,
    Sent,
    audited_federation,
    code_of_log,
    state_after,
)
from tests.support.plan_tree import RECIPIENT, Tree, put

from cloister.errors import VerificationError
from cloister.federation.audit_records import (
    ModelSealed,
    RoundCompleted,
    RunFailed,
)


@pytest.fixture
def run(tmp_path: Path) -> AuditedRun:
    made = AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")
    made.begin()
    made.admit_all()
    return made


def code(run: AuditedRun) -> str:
    return code_of_log(run.path.read_bytes())


def round_of(run: AuditedRun, sent: Sent, **changes: object) -> RoundCompleted:
    entry = RoundCompleted(
        round=sent.round,
        head=sent.head.hex(),
        participants=run.participants(sent),
        state=state_after(sent.round).hex(),
    )
    changed: RoundCompleted = msgspec.structs.replace(entry, **changes)
    return changed


def seal_of(run: AuditedRun, **changes: object) -> ModelSealed:
    sent = run.publish()
    entry = ModelSealed(
        sha256="5" * 64,
        size_bytes=1,
        recipients=run.federation.plan.recipients,
        rounds=ROUNDS,
        state=state_after(ROUNDS).hex(),
        head=sent.head.hex(),
        reports=run.participants(sent),
    )
    changed: ModelSealed = msgspec.structs.replace(entry, **changes)
    return changed


def told(run: AuditedRun, entry: RoundCompleted | ModelSealed) -> str:
    """Returns what a record is found to be that the server signs, whatever it says."""
    return code_of_log(run.lied(entry))


def test_a_round_follows_the_one_before(run: AuditedRun) -> None:
    sent = run.publish()
    assert told(run, round_of(run, sent)) == "holds"
    for number in (0, 2, 3):
        assert told(run, round_of(run, sent, round=number)) == "audit-round"


def test_a_round_is_done_once(run: AuditedRun) -> None:
    sent = run.publish()
    run.complete(sent)
    assert told(run, round_of(run, sent)) == "audit-round"


def test_there_are_no_more_rounds_than_the_plan_has(run: AuditedRun) -> None:
    run.train()
    assert told(run, round_of(run, run.publish())) == "audit-over"


def test_everybody_takes_part_once_in_the_plans_order(run: AuditedRun) -> None:
    sent = run.publish()
    alice, bob = run.participants(sent)
    for parties in ((), (alice,), (bob,), (bob, alice), (alice, bob, bob)):
        entry = round_of(run, sent, participants=parties)
        assert told(run, entry) == "audit-participants"
    posing = msgspec.structs.replace(alice, party="bob")
    entry = round_of(run, sent, participants=(alice, posing))
    assert told(run, entry) == "audit-not-admitted"


def test_a_countersignature_is_over_this_head_and_this_round(run: AuditedRun) -> None:
    sent = run.publish()
    alice, bob = run.participants(sent)
    for other in (
        run.part("bob", Sent(round=2, head=sent.head)),
        run.part("bob", Sent(round=1, head=bytes(32))),
        msgspec.structs.replace(bob, countersignature=alice.countersignature),
        msgspec.structs.replace(bob, countersignature=b""),
    ):
        entry = round_of(run, sent, participants=(alice, other))
        assert told(run, entry) == "audit-countersignature"


def test_the_head_that_went_out_lies_in_the_log_at_its_place(run: AuditedRun) -> None:
    first = run.publish()
    run.complete(first)
    # Of the round before, of before that, of nobody, of what comes later.
    for head in (first.head, bytes.fromhex(run.links()[2].head), bytes(32)):
        assert told(run, round_of(run, Sent(round=2, head=head))) == "audit-head"
    # Any head since the round before will do: others were refused meanwhile.
    node = run.workers["alice"]
    early = Sent(round=2, head=run.log.head)
    run.admit("alice", node=node)
    assert told(run, round_of(run, early)) == "holds"
    assert told(run, round_of(run, Sent(round=2, head=run.log.head))) == "holds"


def test_a_head_of_before_a_restart_counts_for_no_round_after_it(
    run: AuditedRun,
) -> None:
    old = run.publish()
    run.log.close()
    run.begin(epoch=2)
    for party, node in run.workers.items():
        run.admit(party, node=node)
    assert told(run, round_of(run, old)) == "audit-head"


def test_who_was_admitted_by_a_former_server_takes_no_part(run: AuditedRun) -> None:
    run.log.close()
    run.begin(epoch=2)
    run.admit("alice", node=run.workers["alice"])
    assert told(run, round_of(run, run.publish())) == "audit-not-admitted"


def test_a_node_that_was_replaced_before_the_model_went_out_takes_no_part(
    run: AuditedRun,
) -> None:
    old = run.workers["bob"]
    run.admit("bob", epoch=2)
    run.workers["bob"] = old
    assert told(run, round_of(run, run.publish())) == "audit-not-admitted"


def test_an_update_counts_whose_sender_was_replaced_while_others_were_awaited(
    run: AuditedRun,
) -> None:
    sent = run.publish()
    old = run.workers["bob"]
    newer = run.admit("bob", epoch=2)
    run.workers["bob"] = old
    assert told(run, round_of(run, sent)) == "holds"
    run.workers["bob"] = newer
    assert told(run, round_of(run, sent)) == "holds"


def test_an_admission_that_has_lapsed_by_time_is_none(run: AuditedRun) -> None:
    life = run.federation.plan.admission.life_seconds
    run.train(1)
    # The model goes out when the round before is over, so from there on it counts.
    run.clock.forward(timedelta(seconds=life))
    sent = run.publish()
    assert told(run, round_of(run, sent)) == "holds"
    run.complete(sent)
    assert told(run, round_of(run, run.publish())) == "audit-not-admitted"


def test_an_admission_that_has_lapsed_by_rounds_is_none(tmp_path: Path) -> None:
    def change(tree: Tree) -> Tree:
        return put(tree, ("admission",), {"rounds": 2})

    run = AuditedRun(
        audited_federation(tmp_path, change=change), tmp_path / "audit.jsonl"
    )
    run.begin()
    run.admit_all()
    run.train(2)
    assert code(run) == "holds"
    assert told(run, round_of(run, run.publish())) == "audit-not-admitted"
    for party, node in run.workers.items():
        run.admit(party, node=node)
    assert told(run, round_of(run, run.publish())) == "holds"


def test_who_was_withdrawn_takes_part_again_after_attesting_again(
    run: AuditedRun,
) -> None:
    node = run.workers["alice"]
    run.log.admission_withdrawn(
        next(it for it in run._table.admitted() if it.peer.party == "alice"),
        VerificationError("its platform was revoked", code="revoked"),
    )
    assert told(run, round_of(run, run.publish())) == "audit-not-admitted"
    run.admit("alice", node=node)
    assert told(run, round_of(run, run.publish())) == "holds"


def test_a_server_begins_where_the_log_is(run: AuditedRun) -> None:
    run.train(2)
    run.log.close()
    before = run.path.read_bytes()
    for completed, expected in (
        (0, "holds"),
        (1, "holds"),
        (2, "holds"),
        (3, "audit-round"),
    ):
        run.begin(epoch=2, completed=completed)
        run.log.close()
        assert code(run) == expected, completed
        run.path.write_bytes(before)


def test_a_server_begins_with_the_state_that_the_log_has(
    run: AuditedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(2)
    run.log.close()
    before = run.path.read_bytes()
    for completed in (0, 1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(
                "tests.support.made_audit.state_after", lambda _: bytes([9]) * 32
            )
            run.begin(epoch=2, completed=completed)
        run.log.close()
        assert code(run) == "audit-state", completed
        run.path.write_bytes(before)


def test_a_run_begins_where_its_plan_does(tmp_path: Path) -> None:
    named: Tree = {
        "plan": "sha256:" + 64 * "1",
        "state": "sha256:" + state_after(1).hex(),
        "round": 1,
    }

    def change(tree: Tree) -> Tree:
        return put(tree, ("predecessor",), named)

    federation = audited_federation(tmp_path, change=change)
    for completed, expected in ((0, "audit-round"), (1, "holds"), (2, "audit-round")):
        run = AuditedRun(federation, tmp_path / f"{completed}.jsonl")
        run.begin(completed=completed)
        run.log.close()
        assert code(run) == expected, completed
    run = AuditedRun(federation, tmp_path / "1.jsonl")
    run.begin(epoch=2, completed=1)
    run.admit_all()
    run.train()
    run.seal()
    assert code(run) == "holds"


def test_after_a_failure_a_server_completes_nothing(run: AuditedRun) -> None:
    sent = run.publish()
    run.lie(RunFailed(code="worker-missing", reason="gave up"))
    assert told(run, round_of(run, sent)) == "audit-over"


def test_a_server_that_gives_up_may_state_the_state_that_it_leaves(
    run: AuditedRun,
) -> None:
    sent, head = run.publish(), run.head("alice")
    run.lie(round_of(run, sent, state=None))
    left = state_after(1)
    run.lie(RunFailed(code="server-stopped", reason="stopped", state=left.hex()))
    known = msgspec.structs.replace(
        run.mark(), round=1, state=left, audit_head=bytes.fromhex(run.links()[-1].head)
    )
    run.verify(head, run.head("aggregator", known))
    other = msgspec.structs.replace(known, state=state_after(2))
    with pytest.raises(VerificationError) as caught:
        run.verify(head, run.head("aggregator", other))
    assert caught.value.code == "audit-head-differs"


def test_a_server_that_gives_up_has_the_state_that_it_stated(run: AuditedRun) -> None:
    run.complete(run.publish())
    for state, expected in ((state_after(1), "holds"), (state_after(2), "audit-state")):
        entry = RunFailed(code="server-stopped", reason="stopped", state=state.hex())
        assert code_of_log(run.lied(entry)) == expected


def test_a_seal_comes_after_the_last_round(run: AuditedRun) -> None:
    run.train(ROUNDS - 1)
    assert told(run, seal_of(run)) == "audit-seal"
    run.train()
    assert told(run, seal_of(run)) == "holds"
    run.seal()
    assert told(run, seal_of(run)) == "audit-seal"


def test_each_field_of_a_seal_is_pinned(run: AuditedRun) -> None:
    run.train()
    sent = run.publish()
    for changes, expected in (
        ({"rounds": ROUNDS - 1}, "audit-seal"),
        ({"state": "0" * 64}, "audit-seal"),
        ({"recipients": (RECIPIENT,)}, "audit-seal"),
        ({"recipients": (*run.federation.plan.recipients, RECIPIENT)}, "audit-seal"),
        ({"recipients": ()}, "audit-seal"),
        ({"head": "0" * 64}, "audit-head"),
        ({"reports": ()}, "audit-participants"),
        (
            {"reports": run.participants(Sent(round=ROUNDS, head=sent.head))},
            "audit-countersignature",
        ),
    ):
        assert told(run, seal_of(run, **changes)) == expected, changes
    # The server's word alone; who has the file compares them.
    assert told(run, seal_of(run, sha256="6" * 64, size_bytes=7)) == "holds"


def test_nothing_trains_after_the_seal(run: AuditedRun) -> None:
    run.train()
    run.seal()
    assert told(run, round_of(run, run.publish())) == "audit-over"
    run.log.close()
    run.begin(epoch=2)
    assert code(run) == "audit-misplaced"


def test_a_participant_of_a_later_server_needs_its_admission(run: AuditedRun) -> None:
    sent = run.publish()
    stranger = run.federation.node("bob", clock=run.clock, epoch=2)
    run.workers["bob"] = stranger
    assert told(run, round_of(run, sent)) == "audit-not-admitted"
