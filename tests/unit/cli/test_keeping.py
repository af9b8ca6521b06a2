"""Processes that are started again; each is a real one that ends in its own way."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator

import pytest
from tests.support.running import until

from cloister.cli.exit_codes import ExitCode
from cloister.cli.keeping import MOST_DEATHS, Deaths, KeptProcess, Role, stop_kept
from cloister.cli.processes import Event, Member, RunOutcome

KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
WELL = "pass"
FAILED = "raise SystemExit(4)"
WAITS = "import sys; sys.stdin.read()"


def says(*events: Event) -> str:
    """Returns a program that says events."""
    lines = "\n".join(json.dumps(event) for event in events)
    return f"print({lines!r}, flush=True);"


class Started:
    """Starts one small program after another, of which each ends as it likes."""

    def __init__(self, *programs: str) -> None:
        self._programs: Iterator[str] = iter(programs)
        self.heard: list[frozenset[str]] = []
        self.events: list[Event] = []
        self.deaths = Deaths()

    async def __call__(self, said: frozenset[str]) -> Member:
        self.heard.append(said)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-IS", "-c", next(self._programs)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
        )
        return Member(name="alice", process=process)

    def kept(self, *, pause_seconds: float = 0) -> KeptProcess:
        return KeptProcess(
            Role(name="alice", service="worker", start=self, always={"party": "alice"}),
            on_event=self.events.append,
            deaths=self.deaths,
            pause_seconds=pause_seconds,
        )


def kept_to_its_end(started: Started) -> RunOutcome:
    return asyncio.run(started.kept().keep())


def test_what_is_killed_is_started_again_and_told() -> None:
    started = Started(KILLED, KILLED, WELL)
    assert kept_to_its_end(started).code == ExitCode.OK
    told = {"event": "restarted", "signal": "SIGKILL", "party": "alice"}
    assert started.events == 2 * [{**told, "service": "worker"}]


@pytest.mark.parametrize(("program", "code"), [(WELL, 0), (FAILED, 4)])
def test_what_ends_by_itself_is_not_started_again(program: str, code: int) -> None:
    started = Started(program)
    outcome = kept_to_its_end(started)
    assert (outcome.code, outcome.signal) == (code, None)
    assert started.events == []


def test_what_is_killed_again_and_again_is_given_up() -> None:
    started = Started(*MOST_DEATHS * [KILLED])
    outcome = kept_to_its_end(started)
    assert outcome.code == ExitCode.PLATFORM
    assert outcome.failure is not None
    assert outcome.failure["code"] == "node-died"
    assert "SIGKILL" in str(outcome.failure["what"])
    assert len(started.events) == MOST_DEATHS - 1


def test_a_new_round_in_between_pardons_and_one_that_comes_again_does_not() -> None:
    dies_in = [says({"event": "round", "round": n}) + KILLED for n in (1, 2)]
    started = Started(*4 * [KILLED], dies_in[0], *3 * [KILLED], dies_in[1], WELL)
    assert kept_to_its_end(started).code == ExitCode.OK
    stuck = Started(*9 * [dies_in[0]])
    assert kept_to_its_end(stuck).code == ExitCode.PLATFORM
    assert len(stuck.heard) == MOST_DEATHS


def test_a_round_of_another_process_pardons_as_well() -> None:
    deaths = Deaths()
    assert [deaths.count("alice") for _ in range(3)] == [1, 2, 3]
    deaths.hear({"event": "round", "round": 1, "party": "aggregator"})
    assert deaths.count("alice") == 1
    deaths.hear({"event": "round", "round": True})
    deaths.hear({"event": "round"})
    assert deaths.count("alice") == 2


def test_the_next_one_is_told_what_those_before_it_said() -> None:
    began = says({"event": "warranted"}) + KILLED
    started = Started(KILLED, began, WELL)
    kept_to_its_end(started)
    assert ["warranted" in heard for heard in started.heard] == [False, False, True]


def test_what_is_stopped_is_not_started_again() -> None:
    async def story() -> RunOutcome:
        started = Started(says({"event": "listening"}) + WAITS)
        process = started.kept()
        keeping = asyncio.create_task(process.keep())
        await process.said("listening").wait()
        await stop_kept([process])
        return await keeping

    # By the signal that asked it to stop.
    assert asyncio.run(story()).signal == "SIGTERM"


def test_what_waits_to_be_started_again_is_not() -> None:
    async def story() -> RunOutcome:
        started = Started(KILLED)
        process = started.kept(pause_seconds=3600)
        keeping = asyncio.create_task(process.keep())
        await until(lambda: bool(started.deaths._counts))
        await stop_kept([process])
        return await keeping

    assert asyncio.run(story()).signal == "SIGKILL"
