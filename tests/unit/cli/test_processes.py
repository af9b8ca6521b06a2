from __future__ import annotations

import asyncio
import io
import json
import sys
from asyncio.subprocess import PIPE

import pytest
from rich.console import Console
from tests.support.plan_tree import by_identity, plan_tree, toml_of

from cloister.cli.launcher import printing_of
from cloister.cli.processes import Event, Member, Printing, RunOutcome
from cloister.cli.progress import LineReporter
from cloister.plan.plan import parse_plan

FINISHED = json.dumps({"event": "finished"})


def heard(*lines: str | bytes, prints: Printing = "unheard") -> list[Event]:
    """Returns what is told of a process that writes these lines."""
    content = b"\n".join(it if isinstance(it, bytes) else it.encode() for it in lines)
    script = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
    events: list[Event] = []

    async def follow() -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-IS", "-c", script), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        member = Member(name="bob", process=process)
        following = asyncio.create_task(
            member.follow(events.append, prints=prints, party="bob")
        )
        assert process.stdin is not None
        process.stdin.write(content + b"\n")
        await process.stdin.drain()
        process.stdin.close()
        assert (await following).code == 0

    asyncio.run(follow())
    return events


def printed(text: object) -> str:
    """Returns the event that a node makes of what its task printed."""
    return json.dumps({"event": "printed", "text": text})


def test_events_are_told_with_what_stands_in_all_of_them() -> None:
    assert heard(FINISHED) == [{"event": "finished", "party": "bob"}]


def test_what_a_task_prints_is_nobodys_unless_it_is_to_be_shown() -> None:
    assert heard(printed("loss 0.5"), FINISHED) == heard(FINISHED)
    shown = heard(printed("loss 0.5"), FINISHED, prints="shown")
    assert shown[0] == {"event": "printed", "text": "loss 0.5", "party": "bob"}
    assert shown[1:] == heard(FINISHED)


def test_only_what_an_owners_own_node_prints_is_shown() -> None:
    plan = parse_plan(toml_of(by_identity(plan_tree(), "bob")))
    shown = [it.name for it in plan.party if printing_of(it) == "shown"]
    assert shown == ["bob"]


def test_nobody_prints_in_another_partys_name() -> None:
    [event] = heard(json.dumps({"event": "finished", "party": "alice"}))
    assert event["party"] == "bob"


@pytest.mark.parametrize(
    "line",
    [
        "loss 0.5",
        2 * 2**20 * b"x",
        b'{"event": "\xff"}',
        b'{"event": ' + 200_000 * b"[",
        b'{"event": "late", "after": "1 MiB", "of": "' + 2**20 * b"x" + b'"}',
        '{"event": ["finished"]}',
        '{"event": null, "error": {"code": "x", "what": "y"}}',
        '{"age": 42}',
        '{"error": "failed"}',
        '{"error": {"code": ["x"], "what": "y"}}',
        '{"event": "failed", "code": "x"}',
        '{"event": "failed", "code": "x", "what": "y", "got": 3}',
        '{"event": "x", "number": 99999999999999999999999999999999999999999999}',
        "[]",
        b"\x00\xfe",
    ],
    ids=lambda line: repr(line[:24]),
)
@pytest.mark.parametrize("prints", ["shown", "unheard"])
def test_what_is_no_event_is_not_heard_and_ends_nothing(
    line: str | bytes, prints: Printing
) -> None:
    told = heard(line, FINISHED, line, prints=prints)
    assert [it for it in told if it["event"] != "x"] == heard(FINISHED)


def test_a_failure_before_there_was_a_log_is_told() -> None:
    words = {"code": "plan-missing", "what": "no plan", "event": "finished"}
    [event] = heard(json.dumps({"error": words}))
    assert event == {**words, "event": "failed", "party": "bob"}


def test_what_is_printed_steers_no_terminal_and_fills_no_screen() -> None:
    [event] = heard(printed("\x1b[2Jgone\u009b\x07" + 5000 * "x"), prints="shown")
    text = event["text"]
    assert isinstance(text, str)
    assert text.isprintable()
    assert text.startswith("[2Jgone")
    assert len(text) <= 1024


def test_empty_lines_are_not_shown() -> None:
    lines = (printed(""), printed(" \x1b "), FINISHED)
    assert heard(*lines, prints="shown") == heard(FINISHED)


def test_the_last_words_of_a_process_steer_no_terminal() -> None:
    async def follow() -> RunOutcome:
        script = "import sys; sys.exit('\x1b[2Jfirst\\nsecond')"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-IS", "-c", script), stdout=PIPE, stderr=PIPE
        )
        return await Member(name="bob", process=process).follow(lambda _: None)

    outcome = asyncio.run(follow())
    assert outcome.code == 1
    assert outcome.stderr.split("\n") == ["[2Jfirst", "second", ""]


def test_a_person_reads_what_an_owners_node_printed_as_it_is() -> None:
    plan = parse_plan(toml_of(by_identity(plan_tree(), "alice", "bob")))
    screen = io.StringIO()
    reporter = LineReporter(plan, Console(file=screen))
    reporter({"event": "printed", "party": "bob", "text": "loss [bold]0.5[/bold]"})
    assert screen.getvalue() == "  bob: loss [bold]0.5[/bold]\n"


def test_a_persons_terminal_is_steered_by_nothing_that_was_printed() -> None:
    plan = parse_plan(toml_of(by_identity(plan_tree(), "alice", "bob")))
    screen = io.StringIO()
    reporter = LineReporter(plan, Console(file=screen))
    reporter({"event": "printed", "party": "bob", "text": "\x1b]0;owned\x07loss"})
    assert screen.getvalue() == "  bob: ]0;owned loss\n"


def test_a_person_reads_what_was_killed_and_from_where_a_run_goes_on() -> None:
    plan = parse_plan(toml_of(plan_tree()))
    shown = io.StringIO()
    reporter = LineReporter(plan, Console(file=shown, width=200))
    reporter({"event": "restarted", "party": "alice", "signal": "SIGKILL"})
    reporter(
        {
            "event": "restarted",
            "party": "bob",
            "signal": "SIGSEGV",
            "service": "custodian",
        }
    )
    reporter({"event": "state-resumed", "party": "aggregator", "round": 7})
    reporter({"event": "server-changed", "party": "alice", "next_round": 8})
    reporter({"event": "mirror-volatile", "party": "bob"})
    reason = "the disk\x1b[2J is full"
    reporter({"event": "state-not-kept", "party": "aggregator", "reason": reason})
    assert shown.getvalue().splitlines() == [
        "  alice: killed by SIGKILL, started again",
        "  custodian of bob: killed by SIGSEGV, started again",
        "  aggregator: resuming after round 7",
        "  alice: goes on with a new server in round 8",
        "  bob: keeps its state where a power cut ends it; [mirror] directory in"
        " site.toml names another place",
        "  aggregator: could not keep its newest state: the disk [2J is full",
    ]
