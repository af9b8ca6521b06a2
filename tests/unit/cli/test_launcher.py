"""How a run ends, by how its processes did."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE

import pytest

from cloister.cli.exit_codes import ExitCode
from cloister.cli.keeping import Deaths, KeptProcess, Role
from cloister.cli.launcher import Keeping, is_well, see_off
from cloister.cli.processes import Member, RunOutcome

WELL = "pass"
# As a node that is told to stop: in order.
LOOKS_FOR_THE_SERVER = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(130));"
    'print(\'{"event": "waiting-for-server"}\', flush=True); signal.pause()'
)


def fails(code: str, *, status: int = 5) -> str:
    """Returns a program that fails as a node does."""
    event = json.dumps({"event": "failed", "code": code, "what": "something"})
    return f"print({event!r}, flush=True); raise SystemExit({status})"


def kept(program: str) -> KeptProcess:
    async def start(_: frozenset[str]) -> Member:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-IS", "-c", program),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
        )
        return Member(name="alice", process=process)

    role = Role(name="alice", service="worker", start=start)
    return KeptProcess(role, on_event=lambda _: None, deaths=Deaths())


def seen_off(*programs: str, patience_seconds: float = 60) -> RunOutcome:
    async def story() -> RunOutcome:
        processes = [kept(program) for program in programs]
        workers: Keeping = {asyncio.create_task(it.keep()): it for it in processes}
        for process, program in zip(processes, programs, strict=True):
            if program == LOOKS_FOR_THE_SERVER:
                await process.said("waiting-for-server").wait()
        return await see_off(workers, patience_seconds=patience_seconds)

    return asyncio.run(story())


def test_workers_may_end_after_the_server() -> None:
    assert seen_off().code == ExitCode.OK
    assert seen_off(WELL, WELL).code == ExitCode.OK


def test_a_worker_that_looks_for_a_server_that_is_through_is_stopped() -> None:
    outcome = seen_off(LOOKS_FOR_THE_SERVER, patience_seconds=0)
    assert outcome.code == ExitCode.OK


@pytest.mark.parametrize("code", ["server-gone", "server-unreachable"])
def test_nor_does_it_fail_by_giving_up(code: str) -> None:
    assert seen_off(WELL, fails(code)).code == ExitCode.OK


def test_what_else_a_worker_fails_of_is_told() -> None:
    outcome = seen_off(WELL, fails("storage-full", status=4))
    assert outcome.code == ExitCode.STORAGE
    assert outcome.failure is not None
    assert outcome.failure["code"] == "storage-full"


def test_a_server_that_finds_the_run_over_is_well_only_after_it_was_killed() -> None:
    process = kept(WELL)
    over = RunOutcome(code=ExitCode.USAGE, failure={"code": "run-exists"})
    assert not is_well(over, process)
    process.restarts = 1
    assert is_well(over, process)
    assert not is_well(RunOutcome(code=ExitCode.STORAGE), process)
    assert is_well(RunOutcome(code=ExitCode.OK), process)
