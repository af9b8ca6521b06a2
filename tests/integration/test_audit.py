"""A real run's audit log, checked where there is nothing but it and what is public."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.conftest import ROUNDS, RUN_ID, cloister
from tests.integration.run_with_rita import finished_with_rita

from cloister.plan.plan import read_plan

PARTIES = ("aggregator", "alice", "bob")


@pytest.fixture(scope="module")
def auditor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an auditor was sent after a run: its directory, the plan, and heads."""
    deployment = finished_with_rita(tmp_path_factory.getbasetemp())
    sent = tmp_path_factory.mktemp("auditor")
    shutil.copytree(deployment.run_directory, sent / "run")
    shutil.copy(deployment.plan, sent)
    for party in PARTIES:
        custodian = str(deployment.custodian(party))
        for command, name in (
            (("custodian", "head", custodian, RUN_ID), f"{party}.head"),
            (("custodian", "audit", custodian), f"{party}.jsonl"),
        ):
            done = cloister(*command, "-o", str(sent / name))
            assert done.returncode == 0, done.stderr
    return sent


def verified(*arguments: str) -> dict[str, object]:
    done = cloister("audit", "verify", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_run_is_verified_to_its_end(auditor: Path) -> None:
    heads = [f"--head={auditor / party}.head" for party in PARTIES]
    plan = str(auditor / "plan.toml")
    report = verified(str(auditor / "run"), "--plan", plan, *heads)
    assert report["holds"] is True
    assert report["simulated"] is True
    rounds, end, model = report["rounds"], report["end"], report["model"]
    assert isinstance(rounds, dict)
    for what in ("completed", "planned", "recorded"):
        assert rounds[what] == ROUNDS
    took_part = rounds["participants"]
    assert (took_part["least"], took_part["most"]) == (2, 2)
    assert took_part["by_the_plans_rule"] is True
    assert isinstance(end, dict)
    assert isinstance(model, dict)
    # The server's own custodian has the head of after the seal.
    assert end["proven"] is True
    assert [it["party"] for it in end["proofs"]] == list(PARTIES)
    assert model["compared"] is True
    anchors = report["anchors"]
    assert isinstance(anchors, dict)
    assert anchors["plan_compared"] is True


def test_what_a_host_cuts_off_is_missed_by_every_party(
    auditor: Path, tmp_path: Path
) -> None:
    log = (auditor / "run" / "audit.jsonl").read_bytes().splitlines(keepends=True)
    cut = tmp_path / "audit.jsonl"
    cut.write_bytes(b"".join(log[:-2]))
    assert cloister("audit", "verify", str(cut)).returncode == 0
    for party in PARTIES:
        head = str(auditor / f"{party}.head")
        done = cloister("audit", "verify", str(cut), "--head", head)
        assert done.returncode == 3, party
        assert "the log was cut" in done.stderr


def _without_network() -> list[str]:
    """Not everybody may make a namespace; for others the network is there, unused."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    alone = [unshare, "--net"]
    tried = subprocess.run([*alone, "true"], capture_output=True, check=False)  # noqa: S603
    return alone if tried.returncode == 0 else []


def test_the_log_and_the_parties_keys_are_enough_on_a_machine_without_a_network(
    auditor: Path, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_bytes((auditor / "run" / "audit.jsonl").read_bytes())
    plan = read_plan(auditor / "plan.toml")
    keys = [f"--key={party.name}={party.key}" for party in plan.party]
    command = [sys.executable, "-I", "-m", "cloister", "audit", "verify", str(log)]
    done = subprocess.run(  # noqa: S603 - our own program
        [*_without_network(), *command, *keys, "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["holds"] is True
    assert report["anchors"]["keys_compared"] == [*PARTIES, "rita"]
    assert report["anchors"]["keys_not_compared"] == {}
    # What nobody brought is not proven, and said so.
    assert report["end"]["proven"] is False
    assert [it.name for it in tmp_path.iterdir()] == ["audit.jsonl"]


def test_a_run_is_told_as_a_table(auditor: Path) -> None:
    done = cloister("audit", "show", str(auditor / "run"))
    assert done.returncode == 0, done.stderr
    assert f"Rounds 1 to {ROUNDS} were completed and countersigned." in done.stdout
    assert "The model of" in done.stdout


@pytest.mark.parametrize("party", PARTIES)
def test_what_a_custodian_did_is_verified_with_the_plan(
    auditor: Path, party: str
) -> None:
    plan = str(auditor / "plan.toml")
    report = verified(str(auditor / f"{party}.jsonl"), "--plan", plan)
    assert (report["party"], report["key_compared"]) == (party, True)
    nodes = report["nodes"]
    assert isinstance(nodes, list)
    assert party in {node["party"] for node in nodes}
