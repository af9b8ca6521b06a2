from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.made_audit import (
    AuditedRun,
    audited_federation,
    sampling,
    with_quorum,
)

from cloister.cli.attendance_words import (
    attendance_lines,
    attendance_object,
    names_words,
)
from cloister.federation.auditing.report import Attendance, AuditReport


def rounds_of(directory: Path, *rounds: tuple[str, ...], quorum: int) -> AuditReport:
    """Returns the report of a run of four workers in which these took part."""
    run = AuditedRun(
        audited_federation(
            directory,
            change=lambda tree: with_quorum(tree, quorum),
            more_workers=("carol", "dave"),
        ),
        directory / "audit.jsonl",
    )
    run.begin()
    run.admit_all()
    for parties in rounds:
        run.complete(run.publish(), parties)
    return run.verify()


def test_a_round_of_all_workers_is_told_in_two_lines(tmp_path: Path) -> None:
    run = AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")
    run.whole()
    assert list(attendance_lines(run.verify())) == [
        "2 of 2 workers took part in each and countersigned it, by the plan's rule:",
        "  all of them",
    ]


def test_of_drawn_workers_it_is_told_how_often_each_one_was(tmp_path: Path) -> None:
    run = AuditedRun(
        audited_federation(
            tmp_path, change=lambda tree: sampling(tree, 2), more_workers=("carol",)
        ),
        tmp_path / "audit.jsonl",
    )
    run.whole()
    report = run.verify()
    lines = list(attendance_lines(report))
    assert lines[:3] == [
        "2 of 3 workers took part in each and countersigned it, by the plan's rule:",
        "  exactly the 2 that its seed draws for the round",
        "rounds in which each one's update counted:",
    ]
    assert "NOT KNOWN" not in " ".join(lines)
    told = attendance_object(report)
    assert told["rule"] == {"workers": 3, "seats": 2, "sample": 2, "quorum": "all"}
    assert told["rounds_of"] == {
        name: sum(name in run.seated(number) for number in (1, 2, 3))
        for name in ("alice", "bob", "carol")
    }
    assert told["absence_explained"] is True


def test_by_a_number_it_is_said_that_who_was_late_is_not_known(tmp_path: Path) -> None:
    report = rounds_of(tmp_path, ("alice", "bob"), ("alice", "bob"), quorum=2)
    assert report.attendance.rounds == 2
    assert list(attendance_lines(report)) == [
        "2 of 4 workers took part in each and countersigned it, by the plan's rule:",
        "  at least 2 of the 4 with a seat",
        "rounds in which each one's update counted:",
        "  NONE: carol, dave",
        "  2: alice, bob",
        "NOT KNOWN: who of the others came late, had no seat, or was kept away.",
        "  No log shows that; whoever holds back messages decides it",
    ]
    told = attendance_object(report)
    assert (told["least"], told["most"], told["rounds"]) == (2, 2, 2)
    assert told["rounds_of"] == {"alice": 2, "bob": 2, "carol": 0, "dave": 0}
    assert told["absence_explained"] is False


def test_rounds_of_different_size_are_told_to_be_that(tmp_path: Path) -> None:
    report = rounds_of(tmp_path, ("alice", "bob"), ("alice", "bob", "carol"), quorum=2)
    first, *_ = attendance_lines(report)
    assert first.startswith("2 to 3 of 4 workers took part in each")


def test_before_the_first_round_nobody_took_part(tmp_path: Path) -> None:
    report = rounds_of(tmp_path, quorum=2)
    assert list(attendance_lines(report)) == []
    assert attendance_object(report)["rounds"] == 0


def test_of_many_different_numbers_some_are_told(tmp_path: Path) -> None:
    report = rounds_of(tmp_path, ("alice", "bob"), quorum=2)
    for most, told in ((8, [*range(1, 9)]), (9, [1, 2, 3, 4, 5, 6, 7, 9])):
        seen = Attendance(
            rounds=most,
            least=2,
            most=4,
            by_party={f"w{number}": number for number in range(1, most + 1)},
        )
        lines = list(attendance_lines(replace(report, attendance=seen)))
        numbers = [
            int(line.split(":")[0])
            for line in lines
            if line.startswith("  ") and ": w" in line
        ]
        assert numbers == told
        assert ("between the last two" in " ".join(lines)) == (most == 9)


@pytest.mark.parametrize(
    ("number", "end"), [(16, "w14, w15"), (17, "w15 and 1 more"), (1000, "984 more")]
)
def test_of_many_names_the_first_are_told(number: int, end: str) -> None:
    words = names_words([f"w{at}" for at in range(number)])
    assert words.startswith("w0, w1, ")
    assert words.endswith(end)
