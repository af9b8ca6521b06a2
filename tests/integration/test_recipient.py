"""An attested recipient with real processes: it opens the model, and nobody else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.conftest import (
    ROUNDS,
    Deployment,
    Event,
    Start,
    StartCustodians,
    cloister,
    write_signed,
)

from cloister.cli.custodians import open_keys
from cloister.cli.places import read_custodian_place
from cloister.plan.plan import read_plan
from cloister.storage.model_vault import new_identity, read_identity

Copy = Callable[[], Deployment]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A run that went to its end and sealed its model to rita among others.

    All agreed that she evaluates it on alice's held-out records.
    """
    directory = tmp_path_factory.mktemp("recipient") / "deployment"
    deployment = write_signed(directory, recipients=(("rita", "tdx"),))
    pinned = read_plan(deployment.plan).find_party("alice").data
    deployment.edit(
        deployment.plan, '\nrecipient = "', f'\ndata = "{pinned}"\nrecipient = "'
    )
    with deployment.site("rita").open("a") as site:
        site.write('data = "../alice/data"\n')
    deployment.sign()
    done = cloister("run", str(deployment.plan))
    assert done.returncode == 0, done.stderr
    return deployment


@pytest.fixture
def copy(finished: Deployment, tmp_path: Path) -> Copy:
    """Copies the deployment; the ports are rita's alone by now."""

    def make() -> Deployment:
        shutil.copytree(finished.directory, tmp_path / "copy")
        return Deployment(tmp_path / "copy")

    return make


def start_rita(start: Start, deployment: Deployment) -> tuple[int, str]:
    """Runs rita's node to its end."""
    return start(
        "recipient", "--party", "rita", "--plan", str(deployment.plan), "--json"
    ).finish()


def identity_of(deployment: Deployment) -> str:
    """Returns the identity that rita's custodian keeps."""
    recipient = read_plan(deployment.plan).find_party("rita").recipient
    assert recipient is not None
    with deployment.register("rita") as register:
        place = read_custodian_place(deployment.custodian("rita"))
        key = open_keys(place, register).secret(recipient, kind="vault")
    return key.reveal().decode()


def test_a_run_neither_starts_nor_waits_for_a_recipient(finished: Deployment) -> None:
    logs = sorted(path.name for path in (finished.run_directory / "logs").iterdir())
    assert logs == ["aggregator.jsonl", "alice.jsonl", "bob.jsonl"]
    assert finished.events("aggregator", "model-sealed")


def test_a_recipient_opens_the_model_and_writes_nothing_but_its_log(
    copy: Copy, start: Start, start_custodians: StartCustodians
) -> None:
    deployment = copy()
    before = files_below(deployment.directory)
    (custodian,) = start_custodians(deployment, "rita")
    code, errors = start_rita(start, deployment)
    assert code == 0, errors
    custodian.interrupt()
    custodian.finish()
    log = deployment.run_directory / "logs" / "rita.jsonl"
    assert files_below(deployment.directory) - before == {log}

    (opened,) = deployment.events("rita", "model-opened")
    assert (opened["rounds"], opened["simulated"]) == (ROUNDS, True)
    (evaluated,) = deployment.events("rita", "model-evaluated")
    metrics = evaluated["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["accuracy"] > 0.8
    (released,) = [
        it for it in deployment.custodian_log("rita") if it["event"] == "keys-released"
    ]
    assert (released["role"], released["kinds"]) == ("recipient", ["vault"])
    identity = identity_of(deployment)
    for file in files_below(deployment.directory):
        assert identity.encode() not in file.read_bytes(), file


def test_a_host_learns_nothing_from_records_of_its_own_choice(
    copy: Copy, start: Start
) -> None:
    """Its custodian is not even running: no key is asked for."""
    deployment = copy()
    deployment.edit(deployment.site("rita"), "../alice/data", "../bob/data")
    code, errors = start_rita(start, deployment)
    assert code == 4, errors
    assert "not what the plan pins" in errors
    kinds = {event["event"] for event in deployment.log("rita")}
    assert not kinds & {"model-opened", "model-evaluated"}


def test_a_recipient_with_other_code_gets_no_key(
    copy: Copy, start: Start, start_custodians: StartCustodians
) -> None:
    deployment = copy()
    with (deployment.directory / "task.py").open("a") as task:
        task.write("\n# and copies the model elsewhere\n")
    start_custodians(deployment, "rita")
    code, errors = start_rita(start, deployment)
    assert code == 3
    assert "other code than the policy accepts" in errors
    assert deployment.events("rita", "model-opened") == []
    kinds = [event["event"] for event in deployment.custodian_log("rita")]
    assert "keys-released" not in kinds
    assert "warrant-signed" not in kinds


def test_a_recipient_gets_no_key_from_another_partys_custodian(
    copy: Copy, start: Start, start_custodians: StartCustodians
) -> None:
    deployment = copy()
    theirs = read_custodian_place(deployment.custodian("rita")).site.address
    others = read_custodian_place(deployment.custodian("bob")).site.address
    deployment.edit(deployment.site("rita"), theirs, others)
    start_custodians(deployment, "bob")
    code, errors = start_rita(start, deployment)
    assert code == 3, errors
    assert deployment.events("rita", "model-opened") == []


@pytest.mark.parametrize(
    ("role", "party"), [("recipient", "alice"), ("worker", "rita")]
)
def test_nobody_takes_anothers_role(
    finished: Deployment, role: str, party: str
) -> None:
    done = cloister(role, "--party", party, "--plan", str(finished.plan))
    assert done.returncode == 2
    assert f"is not a {role}" in done.stderr


def test_before_there_is_a_model_no_key_is_asked_for(
    copy: Copy, start: Start, tmp_path: Path
) -> None:
    deployment = copy()
    deployment.sealed_model.rename(tmp_path / "moved.age")
    code, errors = start_rita(start, deployment)
    assert code == 2
    assert "no sealed model" in errors


def test_nobody_elses_identity_opens_the_model(
    finished: Deployment, tmp_path: Path
) -> None:
    identities = {
        "stranger": new_identity()[0],
        # What opens a keyring is no key of the model.
        "keyring": read_identity(finished.custodian("rita") / "keyring-identity.txt"),
    }
    for name, identity in identities.items():
        refused = model_open(finished, identity, tmp_path / name)["error"]
        assert isinstance(refused, dict)
        assert refused["code"] == "model-not-for-identity"
    for name, identity in (
        ("rita", identity_of(finished)),
        ("owner", read_identity(finished.identity)),
    ):
        assert model_open(finished, identity, tmp_path / name)["metadata"]


def model_open(deployment: Deployment, identity: str, place: Path) -> Event:
    """Returns what ``cloister model open --json`` says with an identity."""
    place.mkdir()
    (place / "identity.txt").write_text(identity + "\n")
    done = cloister(
        "model",
        "open",
        str(deployment.run_directory),
        "--identity",
        str(place / "identity.txt"),
        "-o",
        str(place / "model.safetensors"),
        "--json",
    )
    said: Event = json.loads(done.stdout)
    return said


def files_below(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}
