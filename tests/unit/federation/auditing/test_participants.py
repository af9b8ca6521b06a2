from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.made_audit import (
    ROUNDS,
    AuditedRun,
    audited_federation,
    code_of_log,
    sampling,
    state_after,
    with_quorum,
)
from tests.support.plan_tree import Tree, add_worker, plan_tree, put, toml_of

from cloister.errors import VerificationError
from cloister.federation.audit_records import ModelSealed, RoundCompleted
from cloister.federation.auditing.participants import Participants
from cloister.federation.rounds.cohort import draw
from cloister.plan.plan import Plan, parse_plan

MORE = ("carol", "dave", "erin")
NAMES = ("alice", "bob", *MORE)
Change = Callable[[Tree], Tree]


def of_all(tree: Tree) -> Tree:
    return tree


def of_three_drawn(tree: Tree) -> Tree:
    return sampling(tree, 3)


def of_at_least_three(tree: Tree) -> Tree:
    return with_quorum(tree, 3)


def of_at_least_two_of_four_seats(tree: Tree) -> Tree:
    return with_quorum(sampling(tree, 4), 2)


def five_workers(change: Change) -> Plan:
    tree = plan_tree()
    for name in MORE:
        add_worker(tree, name)
    return parse_plan(toml_of(change(tree)))


def code(participants: Participants, parties: Sequence[str], number: int = 1) -> str:
    try:
        got = participants.check_round(parties, round_number=number)
    except VerificationError as error:
        return error.code
    assert got == parties
    return "holds"


def report_code(participants: Participants, parties: Sequence[str]) -> str:
    try:
        got = participants.check_reports(parties)
    except VerificationError as error:
        return error.code
    assert got == parties
    return "holds"


def some(*sizes: int) -> list[tuple[str, ...]]:
    return [names for size in sizes for names in combinations(NAMES, size)]


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        (of_all, some(5)),
        (of_at_least_three, some(3, 4, 5)),
        (of_at_least_two_of_four_seats, some(2, 3, 4)),
    ],
)
def test_in_a_round_are_those_whom_the_plan_lets_be_all(
    change: Change, allowed: list[tuple[str, ...]]
) -> None:
    participants = Participants(five_workers(change))
    for parties in some(0, 1, 2, 3, 4, 5):
        expected = "holds" if parties in allowed else "audit-participants"
        assert code(participants, parties) == expected, parties


def test_in_a_round_of_drawn_workers_are_exactly_those() -> None:
    plan = five_workers(of_three_drawn)
    participants = Participants(plan)
    drawn = {
        number: draw(NAMES, seats=3, seed=plan.training.seed, round_number=number)
        for number in range(1, 30)
    }
    assert len(set(drawn.values())) > 5
    for number, names in drawn.items():
        for parties in some(0, 1, 2, 3, 4, 5):
            expected = "holds" if parties == names else "audit-participants"
            assert code(participants, parties, number) == expected, parties


def test_the_draw_is_by_the_plans_seed() -> None:
    def other(tree: Tree) -> Tree:
        return put(of_three_drawn(tree), ("training", "seed"), 8)

    drawn = [
        draw(NAMES, seats=3, seed=7, round_number=number) for number in range(1, 9)
    ]
    plan = five_workers(other)
    assert "audit-participants" in {
        code(Participants(plan), names, number) for number, names in enumerate(drawn, 1)
    }


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        (of_all, some(5)),
        # The final model goes to everybody, whoever had a seat.
        (of_three_drawn, some(5)),
        (of_at_least_three, some(3, 4, 5)),
        (of_at_least_two_of_four_seats, some(2, 3, 4, 5)),
    ],
)
def test_at_the_end_those_report_whom_the_plan_lets_be_all(
    change: Change, allowed: list[tuple[str, ...]]
) -> None:
    participants = Participants(five_workers(change))
    for parties in some(0, 1, 2, 3, 4, 5):
        expected = "holds" if parties in allowed else "audit-participants"
        assert report_code(participants, parties) == expected, parties


@pytest.mark.parametrize("change", [of_all, of_three_drawn, of_at_least_three])
def test_there_is_one_order_and_nobody_else(change: Change) -> None:
    plan = five_workers(change)
    participants = Participants(plan)
    names = draw(NAMES, seats=plan.seats, seed=plan.training.seed, round_number=1)
    assert code(participants, names) == "holds"
    for parties in permutations(names):
        if parties != names:
            assert code(participants, parties) == "audit-participants"
    for parties in (
        (*names[:-1], names[-2]),
        (*names, names[-1]),
        (names[0], *names),
        (*names[:-1], "mallory"),
        (*names, "mallory"),
        ("aggregator", *names),
        ("aggregator", *names[1:]),
    ):
        assert code(participants, parties) == "audit-participants", parties


def test_very_many_names_are_no_message() -> None:
    names = tuple(f"worker-of-a-long-name-{number:02}" for number in range(100))
    tree = plan_tree()
    for name in names:
        add_worker(tree, name)
    participants = Participants(parse_plan(toml_of(tree)))
    with pytest.raises(VerificationError) as caught:
        participants.check_round(names, round_number=1)
    assert len(str(caught.value)) < 1500
    assert "(102)" in str(caught.value)
    assert "(100)" in str(caught.value)


@given(st.data())
def test_attendance_counts_what_was_noted(data: st.DataObject) -> None:
    participants = Participants(five_workers(of_at_least_three))
    noted: dict[int, tuple[str, ...]] = {}
    for number in range(1, data.draw(st.integers(1, 9))):
        noted[number] = data.draw(st.sampled_from(some(3, 4, 5)))
        participants.note(noted[number], round_number=number)
    kept = data.draw(st.integers(0, 9))
    participants.forget_after(kept)
    left = {number: it for number, it in noted.items() if number <= kept}
    seen = participants.attendance
    assert seen.rounds == len(left)
    assert seen.least == min((len(it) for it in left.values()), default=0)
    assert seen.most == max((len(it) for it in left.values()), default=0)
    assert list(seen.by_party) == list(NAMES)
    for name, times in seen.by_party.items():
        assert times == sum(name in it for it in left.values())


def made(directory: Path, change: Change) -> AuditedRun:
    run = AuditedRun(
        audited_federation(directory, change=change, more_workers=MORE),
        directory / "audit.jsonl",
    )
    run.begin()
    run.admit_all()
    return run


@pytest.mark.parametrize(
    "change",
    [of_all, of_three_drawn, of_at_least_three, of_at_least_two_of_four_seats],
)
def test_a_whole_run_by_its_rule_holds(tmp_path: Path, change: Change) -> None:
    run = made(tmp_path, change)
    run.train()
    run.seal()
    run.log.close()
    report = run.verify(run.head("alice"))
    seats = run.federation.plan.seats
    assert report.attendance.rounds == ROUNDS
    assert report.attendance.least == report.attendance.most == seats
    assert sum(report.attendance.by_party.values()) == ROUNDS * seats
    assert report.seal is not None
    assert report.seal.reports == len(NAMES)


def test_rounds_that_some_missed_hold_by_a_number_and_are_told(tmp_path: Path) -> None:
    run = made(tmp_path, of_at_least_three)
    run.complete(run.publish(), ("alice", "bob", "carol"))
    run.complete(run.publish(), ("bob", "carol", "dave", "erin"))
    run.complete(run.publish(), ("alice", "carol", "erin"))
    run.seal(("bob", "carol", "erin"))
    run.log.close()
    report = run.verify()
    seen = report.attendance
    assert (seen.rounds, seen.least, seen.most) == (3, 3, 4)
    assert seen.by_party == {"alice": 2, "bob": 2, "carol": 3, "dave": 1, "erin": 2}
    assert report.seal is not None
    assert report.seal.reports == 3


def test_a_server_that_leaves_somebody_out_is_found_out(tmp_path: Path) -> None:
    run = made(tmp_path, of_three_drawn)
    sent = run.publish()
    drawn = run.seated(1)
    [out, *_] = [name for name in NAMES if name not in drawn]
    for parties, expected in (
        (drawn, "holds"),
        (drawn[1:], "audit-participants"),
        (tuple(it for it in NAMES if it in {out, *drawn[1:]}), "audit-participants"),
        (NAMES, "audit-participants"),
    ):
        entry = RoundCompleted(
            round=1,
            head=sent.head.hex(),
            participants=run.participants(sent, parties),
            state=state_after(1).hex(),
        )
        assert code_of_log(run.lied(entry)) == expected, parties


def test_a_seal_without_enough_reports_is_found_out(tmp_path: Path) -> None:
    run = made(tmp_path, of_at_least_three)
    run.train()
    sent = run.publish()
    sealed = ModelSealed(
        sha256="5" * 64,
        size_bytes=1,
        recipients=run.federation.plan.recipients,
        rounds=ROUNDS,
        state=state_after(ROUNDS).hex(),
        head=sent.head.hex(),
        reports=run.participants(sent, NAMES[2:]),
    )
    assert code_of_log(run.lied(sealed)) == "holds"
    fewer = msgspec.structs.replace(sealed, reports=sealed.reports[1:])
    assert code_of_log(run.lied(fewer)) == "audit-participants"


def test_rounds_that_were_lost_do_not_count(tmp_path: Path) -> None:
    run = made(tmp_path, of_at_least_three)
    run.complete(run.publish(), ("alice", "bob", "carol"))
    run.complete(run.publish(), ("alice", "bob", "carol", "dave"))
    run.log.close()
    run.begin(epoch=2, completed=1)
    assert run.verify().attendance.rounds == 1
    run.admit_all(epoch=2)
    run.complete(run.publish(), NAMES)
    report = run.verify()
    assert (report.completed, report.rounds_recorded) == (2, 3)
    seen = report.attendance
    assert (seen.rounds, seen.least, seen.most) == (2, 3, 5)
    assert seen.by_party == {"alice": 2, "bob": 2, "carol": 2, "dave": 1, "erin": 1}
