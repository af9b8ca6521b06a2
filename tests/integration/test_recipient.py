"""An attested recipient with real processes: it opens the model, and nobody else."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.integration.conftest import (
    ROUNDS,
    Deployment,
    Event,
    Start,
    StartCustodians,
    cloister,
    share_of,
)
from tests.integration.run_with_rita import ASKER, finished_with_rita

from cloister.cli.custodians import open_keys
from cloister.cli.data_sealing import seal_for
from cloister.cli.places import read_custodian_place
from cloister.plan.plan import read_plan
from cloister.storage.model_vault import (
    new_identity,
    open_model,
    read_identity,
    seal_model,
)
from cloister.storage.record_stream import Chunk

Copy = Callable[[], Deployment]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return finished_with_rita(tmp_path_factory.getbasetemp())


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
    assert (released["role"], released["kinds"]) == ("recipient", ["data", "vault"])
    identity = identity_of(deployment)
    for file in files_below(deployment.directory):
        assert identity.encode() not in file.read_bytes(), file


def test_a_host_learns_nothing_from_records_of_its_own_choice(
    copy: Copy, start: Start
) -> None:
    """Its custodian is not even running: no key is asked for."""
    deployment = copy()
    deployment.edit(deployment.site("rita"), '"data.sealed', '"../bob/data.sealed')
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


def test_nobody_takes_anothers_role(finished: Deployment, start: Start) -> None:
    plan = ("--plan", str(finished.plan))
    started = {
        role: start(role, "--party", party, *plan)
        for role, party in (("recipient", "alice"), ("worker", "rita"))
    }
    for role, node in started.items():
        code, errors = node.finish()
        assert code == 2
        assert f"is not a {role}" in errors


def test_before_there_is_a_model_no_key_is_asked_for(
    copy: Copy, start: Start, tmp_path: Path
) -> None:
    deployment = copy()
    deployment.sealed_model.rename(tmp_path / "moved.age")
    code, errors = start_rita(start, deployment)
    assert code == 2
    assert "no sealed model" in errors


@pytest.mark.long
def test_the_plans_metrics_are_printed(
    copy: Copy, start_custodians: StartCustodians
) -> None:
    deployment = copy()
    start_custodians(deployment, "rita")
    done = cloister("model", "evaluate", *rita(deployment))
    assert done.returncode == 0, done.stderr
    accuracy, loss = done.stdout.splitlines()
    assert 0.8 < float(accuracy.removeprefix("accuracy ")) <= 1
    assert loss == "loss 0"


def test_predictions_leave_the_node_sealed_to_the_one_who_asks(
    copy: Copy, start_custodians: StartCustodians, tmp_path: Path
) -> None:
    deployment = copy()
    asked = seal_question(deployment)
    before = files_below(deployment.directory)
    (custodian,) = start_custodians(deployment, "rita")
    sealed = deployment.directory / "predictions.safetensors.age"
    done = predict(deployment, asked, sealed)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    custodian.interrupt()
    custodian.finish()
    log = deployment.run_directory / "logs" / "rita.jsonl"
    assert files_below(deployment.directory) - before == {log, sealed}

    (told,) = deployment.events("rita", "predictions-sealed")
    assert told["records"] == len(LABELS)
    # Counts, and the digests of what is sealed: no metric, no answer.
    assert not {"metrics", "label", "score"} & {
        k for e in deployment.log("rita") for k in e
    }
    said = open_sealed(sealed, ASKER, tmp_path / "asker")
    metadata = said["metadata"]
    assert isinstance(metadata, dict)
    assert metadata["records"] == str(len(LABELS))
    arrays = load_file(tmp_path / "asker" / "opened")
    assert (arrays["label"] == LABELS).mean() > 0.8
    scores = arrays["score"].tobytes()
    for file in files_below(deployment.directory):
        assert scores[:16] not in file.read_bytes(), file
    refused = open_sealed(sealed, identity_of(deployment), tmp_path / "rita")["error"]
    assert isinstance(refused, dict)
    assert refused["code"] == "model-not-for-identity"


def test_a_host_gets_no_answers_on_records_of_its_choice(copy: Copy) -> None:
    """No key is asked for: there is not even a custodian."""
    deployment = copy()
    output = deployment.directory / "predictions.safetensors.age"
    done = predict(deployment, deployment.data("alice"), output)
    assert done.returncode == 4, done.stderr
    assert "was sealed by somebody else" in done.stderr
    assert not output.exists()


@pytest.mark.long
def test_a_host_gets_no_answers_once_it_changed_a_record(
    copy: Copy, start_custodians: StartCustodians
) -> None:
    deployment = copy()
    output = deployment.directory / "predictions.safetensors.age"
    asked = seal_question(deployment)
    content = bytearray(asked.read_bytes())
    content[len(content) // 3] ^= 1
    asked.write_bytes(content)
    start_custodians(deployment, "rita")
    done = predict(deployment, asked, output)
    assert done.returncode == 4, done.stderr
    assert "was altered, or is not in its place" in done.stderr
    assert not output.exists()
    kinds = {event["event"] for event in deployment.log("rita")}
    assert not kinds & {"model-opened", "predictions-sealed"}


def test_a_host_learns_nothing_by_a_model_of_its_own_making(
    copy: Copy, start_custodians: StartCustodians
) -> None:
    """It can seal to rita, and knows all that the server would say of the model."""
    deployment = copy()
    opened = open_model(
        deployment.sealed_model, identity=read_identity(deployment.identity)
    )
    seal_model(
        {name: 0 * array for name, array in opened.arrays.items()},
        metadata=opened.metadata,
        recipients=read_plan(deployment.plan).recipients,
        path=deployment.sealed_model,
    )
    start_custodians(deployment, "rita")
    done = cloister("model", "evaluate", *rita(deployment))
    assert done.returncode == 3, done.stderr
    assert "is not the one in the run's log" in done.stderr
    assert done.stdout == ""
    kinds = {event["event"] for event in deployment.log("rita")}
    assert not kinds & {"model-opened", "model-evaluated"}


def test_the_network_is_sealed_by_the_worker_that_the_plan_names(
    finished: Deployment, tmp_path: Path
) -> None:
    (sealed,) = finished.events("alice", "graph-sealed")
    assert finished.events("bob", "graph-sealed") == []
    (tmp_path / "identity.txt").write_text(finished.identity.read_text())
    output = tmp_path / "graph.pt2"
    done = cloister(
        *("model", "open", str(finished.run_directory), "--graph", "-o", str(output)),
        *("--identity", str(tmp_path / "identity.txt"), "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size_bytes"] == output.stat().st_size
    assert output.read_bytes().startswith(b"softmax of a line: ")
    content = (finished.run_directory / "graph.pt2.age").read_bytes()
    assert hashlib.sha256(content).hexdigest() == sealed["sha256"]


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


def rita(deployment: Deployment) -> tuple[str, ...]:
    return ("--party", "rita", "--plan", str(deployment.plan))


class Question:
    """Bob's share, all of it to be predicted on."""

    format = "arrays"
    total = None

    def __init__(self) -> None:
        self._stream = share_of("bob")
        self.schema = self._stream.schema

    def chunks(self) -> Iterator[Chunk]:
        for chunk in self._stream.chunks():
            yield replace(chunk, split="held-out")


LABELS = np.concatenate([it.columns["label"] for it in Question().chunks()])


def seal_question(deployment: Deployment) -> Path:
    """Has rita seal records that no plan pins; returns where they lie."""
    path = deployment.directory / "question.sealed"
    place = read_custodian_place(deployment.custodian("rita"))
    return seal_for(place, Question(), path=path).path


def predict(
    deployment: Deployment, data: Path, output: Path
) -> subprocess.CompletedProcess[str]:
    given = ("--data", str(data), "-o", str(output))
    return cloister("model", "predict", *rita(deployment), *given)


def model_open(deployment: Deployment, identity: str, place: Path) -> Event:
    """Returns what ``cloister model open --json`` says with an identity."""
    return open_sealed(deployment.run_directory, identity, place)


def open_sealed(sealed: Path, identity: str, place: Path) -> Event:
    place.mkdir()
    (place / "identity.txt").write_text(identity + "\n")
    done = cloister(
        *("model", "open", str(sealed), "-o", str(place / "opened")),
        *("--identity", str(place / "identity.txt"), "--json"),
    )
    said: Event = json.loads(done.stdout)
    return said


def files_below(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}
