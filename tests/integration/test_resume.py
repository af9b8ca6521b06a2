"""Real processes that are killed, and the runs that go on all the same."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tests.integration.conftest import (
    PARTIES,
    ROUNDS,
    RUN_ID,
    Deployment,
    Running,
    Start,
    cloister,
)

from cloister.cli.auditing_here import audit_here
from cloister.plan.plan import plan_hash, read_plan

# Some seconds of training; each node takes longer than that to start.
MORE_ROUNDS = 250


def lengthen(deployment: Deployment, rounds: int = MORE_ROUNDS) -> None:
    """Gives a plan so many rounds that a run can be broken off in the middle."""
    deployment.edit(deployment.plan, f"rounds = {ROUNDS}", f"rounds = {rounds}")
    deployment.edit(
        deployment.plan, "evaluate_every = 10", f"evaluate_every = {rounds}"
    )
    deployment.sign()


def processes_of(run: Running) -> dict[str, int]:
    """Returns the processes that a launcher has, by what they are started as."""
    own = run.process.pid
    listed = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    found = {}
    for pid in listed:
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            [party] = [
                it
                for it in ("server", *PARTIES)
                if it in words or any(f"custodians/{it}/" in word for word in words)
            ]
            kind = "custodian of " if "custodian" in words else ""
            found[kind + party] = int(pid)
    return found


def cut_power(run: Running) -> None:
    """Kills a launcher and all that it started, at once."""
    for pid in (run.process.pid, *processes_of(run).values()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.finish()


def broken_off(deployment: Deployment, start: Start) -> None:
    """Runs a plan until some rounds are trained, and has it stop in order."""
    run = start("run", str(deployment.plan), "--json")
    run.wait_for("round")
    run.interrupt()
    assert run.finish()[0] == 130


def assert_whole(deployment: Deployment, *, rounds: int) -> None:
    """Checks that a run came to its end, and that auditors say so."""
    assert deployment.sealed_model.exists()
    told = deployment.events("aggregator", "round")
    # A server that is killed between a round's state and the line about it never tells.
    missing = set(range(1, rounds + 1)) - {event["round"] for event in told}
    assert len(missing) <= 1
    plan = read_plan(deployment.plan)
    assert audit_here(plan, deployment.plan, deployment.run_directory).unproven == 0


@pytest.mark.long
def test_what_is_killed_is_started_again_and_a_killed_run_goes_on_by_itself(
    deployment: Deployment, start: Start
) -> None:
    lengthen(deployment)
    run = start("run", str(deployment.plan), "--json")
    run.wait_for("round", party="aggregator")
    for victim in ("server", "alice", "custodian of bob"):
        os.kill(processes_of(run)[victim], signal.SIGKILL)
        restarted = run.wait_for("restarted")
        assert restarted["signal"] == "SIGKILL"
        run.wait_for("round", party="aggregator")
    assert deployment.events("aggregator", "state-resumed")
    cut_power(run)
    assert not deployment.sealed_model.exists()
    done = cloister("run", str(deployment.plan))
    assert done.returncode == 0, done.stderr
    assert "resuming after round" in done.stderr
    assert_whole(deployment, rounds=MORE_ROUNDS)


def amend(deployment: Deployment) -> None:
    """Puts an amended plan, of more rounds, in the place of the plan."""
    written = deployment.directory / "amended.toml"
    done = amendment(deployment, written)
    assert done.returncode == 0, done.stderr
    more = f"rounds = {MORE_ROUNDS + 5}"
    deployment.edit(written, f"rounds = {MORE_ROUNDS}", more)
    written.replace(deployment.plan)


def amendment(deployment: Deployment, written: Path) -> CompletedProcess[str]:
    """Has an amendment written to a file; returns how that ended."""
    custodian = str(deployment.custodian("aggregator"))
    words = ("plan", "amend", str(deployment.plan), "--custodian", custodian)
    return cloister(*words, "-o", str(written))


def killed(deployment: Deployment, start: Start) -> None:
    """Runs a plan until some rounds are trained, and kills it; nobody may amend it."""
    run = start("run", str(deployment.plan), "--json")
    run.wait_for("round", party="aggregator")
    cut_power(run)
    refused = amendment(deployment, deployment.directory / "refused.toml")
    assert refused.returncode == 2
    assert "Start the server once more" in refused.stderr
    assert not (deployment.directory / "refused.toml").exists()


def patch_the_task(deployment: Deployment) -> None:
    """Changes a file that every node measures, and has the plan ask for that."""
    with (deployment.directory / "task.py").open("a") as file:
        file.write("# patched\n")
    done = cloister("measure", str(deployment.plan), "--write")
    assert done.returncode == 0, done.stderr


def without_shares(deployment: Deployment) -> None:
    """Has state keys come from the platforms: of the server's alone, which is SGX."""
    text = deployment.plan.read_text()
    deployment.plan.write_text(re.sub(r"state_share = .*\n", "", text))
    for party in PARTIES:
        with suppress(AssertionError):
            deployment.drop_shares(party)


@pytest.mark.long
@pytest.mark.parametrize("shares", [True, False], ids=["shares", "sealing"])
def test_a_run_goes_on_under_an_amended_plan(
    deployment: Deployment, start: Start, *, shares: bool
) -> None:
    if not shares:
        without_shares(deployment)
    lengthen(deployment)
    before = plan_hash(read_plan(deployment.plan))
    if shares:
        killed(deployment, start)
    broken_off(deployment, start)
    amend(deployment)
    if shares:  # a sealing key would be another for other code
        patch_the_task(deployment)
    deployment.sign()
    done = cloister("run", str(deployment.plan))
    assert done.returncode == 0, done.stderr
    assert "resuming after round" in done.stderr
    assert_whole(deployment, rounds=MORE_ROUNDS + 5)
    # The state under the plan before stays what it was.
    after = plan_hash(read_plan(deployment.plan))
    mirrors = {it for it in deployment.states if it.endswith(".mirror")}
    assert {f"aggregator.{it.hex()[:16]}.mirror" for it in (before, after)} <= mirrors


@pytest.mark.long
def test_a_run_begins_anew_only_when_asked_and_when_custodians_forgot_it(
    deployment: Deployment, start: Start
) -> None:
    lengthen(deployment, 60)
    broken_off(deployment, start)
    fresh = ("run", str(deployment.plan), "--fresh")
    refused = cloister(*fresh)
    assert refused.returncode == 3
    commands = re.findall(
        r"cloister (custodian rewind \S+ [^;\s]+?)[;.\s]", refused.stderr
    )
    assert len(commands) == len(PARTIES)
    assert all(RUN_ID in command for command in commands)
    before = deployment.audit.read_bytes()
    for command in commands:
        assert cloister(*command.split(), "--yes").returncode == 0
    done = cloister(*fresh)
    assert done.returncode == 0, done.stderr
    assert "resuming" not in done.stderr
    assert_whole(deployment, rounds=60)
    # What was there lies under a dated name; a mirror in its own directory.
    [kept] = deployment.run_directory.glob("before-*/audit.jsonl")
    assert kept.read_bytes() == before
    assert len(list(deployment.run_directory.glob("state/before-*/*.mirror"))) == 1
