from __future__ import annotations

import asyncio
import io
import json
import sys
from asyncio.subprocess import PIPE

from rich.console import Console
from tests.support.plan_tree import by_identity, plan_tree, toml_of

from cloister.cli.launcher import printing_of
from cloister.cli.processes import Event, Member, Printing
from cloister.cli.progress import LineReporter
from cloister.plan.plan import parse_plan

FINISHED = json.dumps({"event": "finished"})


def heard(*lines: str, prints: Printing = "unheard") -> list[Event]:
    """Returns what is told of a process that writes these lines."""
    events: list[Event] = []

    async def follow() -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-IS", "-c", f"print({chr(10).join(lines)!r})"),
            stdout=PIPE,
            stderr=PIPE,
        )
        member = Member(name="bob", process=process)
        outcome = await member.follow(events.append, prints=prints, party="bob")
        assert outcome.code == 0

    asyncio.run(follow())
    return events


def test_events_are_told_with_what_stands_in_all_of_them() -> None:
    assert heard(FINISHED) == [{"event": "finished", "party": "bob"}]


def test_what_a_task_prints_is_nobodys_unless_it_is_to_be_shown() -> None:
    assert heard("loss 0.5", FINISHED) == heard(FINISHED)
    shown = heard("loss 0.5", FINISHED, prints="shown")
    assert shown[0] == {"event": "printed", "text": "loss 0.5", "party": "bob"}
    assert shown[1:] == heard(FINISHED)


def test_only_what_an_owners_own_node_prints_is_shown() -> None:
    plan = parse_plan(toml_of(by_identity(plan_tree(), "bob")))
    shown = [it.name for it in plan.party if printing_of(it) == "shown"]
    assert shown == ["bob"]


def test_nobody_prints_in_another_partys_name() -> None:
    [event] = heard(json.dumps({"event": "finished", "party": "alice"}))
    assert event["party"] == "bob"


def test_what_is_printed_steers_no_terminal_and_fills_no_screen() -> None:
    [event] = heard("\x1b[2Jgone\u009b\x07" + 5000 * "x", prints="shown")
    text = event["text"]
    assert isinstance(text, str)
    assert text.isprintable()
    assert text.startswith("[2Jgone")
    assert len(text) <= 1024


def test_empty_lines_are_not_shown() -> None:
    assert heard("", " \x1b ", FINISHED, prints="shown") == heard(FINISHED)


def test_a_person_reads_what_an_owners_node_printed_as_it_is() -> None:
    plan = parse_plan(toml_of(by_identity(plan_tree(), "alice", "bob")))
    screen = io.StringIO()
    reporter = LineReporter(plan, Console(file=screen))
    reporter({"event": "printed", "party": "bob", "text": "loss [bold]0.5[/bold]"})
    assert screen.getvalue() == "  bob: loss [bold]0.5[/bold]\n"
