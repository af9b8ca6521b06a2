"""What a node says and what its task prints, in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.plan_tree import by_identity, plan_tree, toml_of

from cloister.cli.interpreter import NODE_ENVIRONMENT
from cloister.cli.own_output import Prints, prints_of
from cloister.plan.plan import parse_plan

# A node whose task prints in every way that there is.
SCRIPT = """
import asyncio, json, os, subprocess, sys
from pathlib import Path
from cloister.cli.journal import open_log
from cloister.cli.node_process import run_node

FALSE = json.dumps({"event": "failed", "code": "x", "what": "y"})

async def main(log):
    log.info("begun")
    print(FALSE)
    print("loss \\x1b[2J0.5")
    os.write(1, b"not UTF-8: \\xff\\n")
    sys.__stdout__.buffer.write(b"in bytes\\n")
    sys.stdout.flush()
    subprocess.run(["/bin/echo", "by a child"], check=True)
    print(5000 * "x")
    log.info("long", text=200_000 * "y")
    sys.stdout.write("without an end")
    log.info("ended")

import atexit
atexit.register(print, FALSE)
log = open_log(Path(sys.argv[1]), as_json=sys.argv[2] == "--json", party="bob")
run_node(log, main, prints=sys.argv[3], tethered=False)
"""
FALSE = json.dumps({"event": "failed", "code": "x", "what": "y"})


def run(log: Path, prints: Prints, *, as_json: bool) -> list[str]:
    """Returns what the node writes to stdout, by line; nothing goes to stderr."""
    form = "--json" if as_json else "--human"
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-I", "-c", SCRIPT, str(log), form, prints],
        env=NODE_ENVIRONMENT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert bool(done.stderr) != as_json  # in words for a person
    return done.stdout.decode(errors="replace").splitlines()


def events(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


OWN = ["begun", "long", "ended"]


def test_what_an_attested_nodes_task_prints_goes_nowhere(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = run(log, "nowhere", as_json=True)
    assert [it["event"] for it in events(said)] == OWN
    assert said == log.read_text().splitlines()


def test_nor_does_it_where_a_person_started_the_node(tmp_path: Path) -> None:
    assert run(tmp_path / "log", "nowhere", as_json=False) == []


def test_what_an_owners_task_prints_becomes_events_and_nothing_else(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    said = events(run(log, "as-events", as_json=True))
    printed = [it for it in said if it["event"] == "printed"]
    assert [it["text"] for it in printed] == [
        FALSE,
        "loss  [2J0.5",
        "not UTF-8: \ufffd",
        "in bytes",
        "by a child",
        1024 * "x",
        "without an end",
    ]
    assert {it["party"] for it in printed} == {"bob"}
    # On this machine's screen; but in no log.
    own = [it for it in said if it["event"] != "printed"]
    assert [it["event"] for it in own] == OWN
    assert own == events(log.read_text().splitlines())


def test_an_owner_at_the_terminal_sees_what_the_task_prints(tmp_path: Path) -> None:
    said = run(tmp_path / "log", "as-they-are", as_json=False)
    assert FALSE in said
    assert "by a child" in said
    assert "5000" not in said


@pytest.mark.parametrize("as_json", [False, True])
def test_only_an_owners_own_node_shows_what_its_task_prints(*, as_json: bool) -> None:
    plan = parse_plan(toml_of(by_identity(plan_tree(), "bob")))
    found = {it.name: prints_of(it, as_json=as_json) for it in plan.party}
    shown = "as-events" if as_json else "as-they-are"
    assert found.pop("bob") == shown
    assert set(found.values()) == {"nowhere"}
