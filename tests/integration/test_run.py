"""A whole run with real processes: what it leaves, and what it never shows."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.integration.canary_task import CANARY
from tests.integration.conftest import ROUNDS, RUN_ID, Deployment, Start, cloister

from cloister.cli.interpreter import NODE_ENVIRONMENT
from cloister.plan.plan import plan_hash, read_plan
from cloister.storage.model_vault import new_identity


@pytest.fixture(scope="module")
def finished(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A run that went to its end."""
    directory = tmp_path_factory.mktemp("finished") / "deployment"
    shutil.copytree(template, directory)
    done = cloister("run", str(directory / "plan.toml"))
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stderr
    return Deployment(directory)


def test_a_run_trains_every_round_and_learns(finished: Deployment) -> None:
    rounds = finished.events("aggregator", "round")
    assert [event["round"] for event in rounds] == list(range(1, ROUNDS + 1))
    final = finished.events("aggregator", "evaluation")[-1]
    assert final["round"] == ROUNDS
    metrics = final["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["accuracy"] > 0.8


def test_both_sides_attest_each_other(finished: Deployment) -> None:
    admitted = finished.events("aggregator", "peer-admitted")
    assert {(e["peer"], e["tee"]) for e in admitted} == {
        ("alice", "sgx"),
        ("bob", "tdx"),
    }
    for party in ("alice", "bob"):
        (attested,) = finished.events(party, "server-attested")
        assert attested["peer"] == "aggregator"
        assert attested["simulated"] is True


def test_a_run_leaves_logs_the_sealed_model_and_state_and_nothing_else(
    finished: Deployment,
) -> None:
    assert finished.leftovers() == []
    assert finished.sealed_model.exists()
    logs = sorted(p.name for p in (finished.run_directory / "logs").iterdir())
    assert logs == ["aggregator.jsonl", "alice.jsonl", "bob.jsonl"]
    # Workers of a task that keeps nothing have a lock alone.
    plan = plan_hash(read_plan(finished.plan)).hex()
    mirror = f"aggregator.{plan[:16]}.mirror"
    assert finished.states == [mirror, "aggregator.lock", "alice.lock", "bob.lock"]


def test_the_owner_opens_what_was_reported(
    finished: Deployment, tmp_path: Path
) -> None:
    output = tmp_path / "model.safetensors"
    done = cloister(
        "model",
        "open",
        str(finished.run_directory),
        "--identity",
        str(finished.identity),
        "-o",
        str(output),
    )
    assert done.returncode == 0, done.stderr
    arrays = load_file(output)
    assert arrays["weight"].shape == (10, 192)
    np.testing.assert_array_equal(arrays["canary"], np.full(16, CANARY))
    assert output.stat().st_mode & 0o777 == 0o600


def test_the_public_age_tool_opens_the_model_to_the_same_bytes(
    finished: Deployment, tmp_path: Path
) -> None:
    age = shutil.which("age")
    if age is None:
        pytest.skip("the age tool is not installed; `make test` as root installs it")
    theirs = tmp_path / "age.safetensors"
    subprocess.run(  # noqa: S603 - the public tool
        [age, "-d", "-i", finished.identity, "-o", theirs, finished.sealed_model],
        check=True,
    )
    ours = tmp_path / "ours.safetensors"
    cloister(
        "model",
        "open",
        str(finished.run_directory),
        "--identity",
        str(finished.identity),
        "-o",
        str(ours),
    )
    assert theirs.read_bytes() == ours.read_bytes()


def test_another_identity_opens_nothing(finished: Deployment, tmp_path: Path) -> None:
    # The identity of another deployment's owner: well-formed, and not a recipient.
    stranger = tmp_path / "stranger.txt"
    stranger.write_text(new_identity()[0])
    output = tmp_path / "model.safetensors"
    done = cloister(
        "model",
        "open",
        str(finished.run_directory),
        "--identity",
        str(stranger),
        "-o",
        str(output),
    )
    assert done.returncode == 4
    assert "not sealed to this identity" in done.stderr
    assert not output.exists()


def test_no_key_and_no_parameter_touches_the_disk_in_the_clear(
    finished: Deployment, tmp_path: Path
) -> None:
    """The canary: a statistic of the model, which every update and model carries."""
    raw = struct.pack("<d", CANARY)
    output = tmp_path / "opened.safetensors"
    cloister(
        "model",
        "open",
        str(finished.run_directory),
        "--identity",
        str(finished.identity),
        "-o",
        str(output),
    )
    assert raw * 16 in output.read_bytes(), "the canary is in the model"
    weight = load_file(output)["weight"].tobytes()
    needles = {
        "canary": raw,
        "canary in hex": raw.hex().encode(),
        "canary in base64": base64.b64encode(raw * 3)[:24],
        "canary as text": repr(CANARY).encode()[:12],
        "a run of weights": weight[:64],
        "a private key": b"PRIVATE KEY",
        "an age identity": b"AGE-SECRET-KEY-",
    }
    files = [p for p in finished.run_directory.rglob("*") if p.is_file()]
    # Logs, the audit log, the model; and the server's state, with three locks.
    assert len(files) == 9
    assert any(path.suffix == ".mirror" for path in files)
    for path in files:
        content = path.read_bytes()
        if path == finished.audit:
            content += audited(path)
        for what, needle in needles.items():
            assert needle not in content, f"{what} in {path.name}"


def audited(path: Path) -> bytes:
    """Returns what an audit log says: its lines hold it in base64."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    return b"\n".join(base64.b64decode(line["payload"]) for line in lines)


def test_the_server_leaves_an_audit_log_of_the_whole_run(finished: Deployment) -> None:
    lines = audited(finished.audit).splitlines()
    kinds = [json.loads(line)["entry"]["kind"] for line in lines]
    assert kinds[0] == "run-opened"
    assert kinds.count("server-introduced") == 1
    assert kinds.count("node-admitted") == 2
    assert kinds.count("round") == len(finished.events("aggregator", "round"))
    assert kinds[-1] == "model-sealed"
    [sealed] = finished.events("aggregator", "model-sealed")
    with finished.register("aggregator") as register:
        mark = register.mark(RUN_ID)
    assert mark is not None
    assert mark.audit_head is not None
    assert mark.audit_head.hex() == sealed["audit_head"]


def test_no_single_party_metric_is_logged_anywhere(finished: Deployment) -> None:
    for party in ("alice", "bob"):
        for event in finished.log(party):
            assert not {"loss", "metrics", "accuracy"} & set(event)
    published = [set(e) for e in finished.events("aggregator", "evaluation")]
    assert all("peer" not in keys for keys in published)


def test_a_run_that_is_over_is_not_run_again(finished: Deployment) -> None:
    before = finished.sealed_model.read_bytes()
    done = cloister("run", str(finished.plan))
    assert done.returncode == 2
    assert "this run is over" in done.stderr
    assert finished.sealed_model.read_bytes() == before


def test_a_node_takes_nothing_from_a_hostile_environment(
    deployment: Deployment, start: Start, tmp_path: Path
) -> None:
    """Variables that add code, leak keys or divert channels are gone in a node."""
    key_log = tmp_path / "keys.log"
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text("raise SystemExit('code was added')")
    worker = start(
        "worker",
        "--party",
        "alice",
        "--plan",
        str(deployment.plan),
        "--json",
        environment={
            "PATH": "/usr/bin:/bin",
            "SSLKEYLOGFILE": str(key_log),
            "GRPC_TRACE": "all",
            "GRPC_VERBOSITY": "DEBUG",
            "GRPC_SSL_CIPHER_SUITES": "ECDHE-ECDSA-AES128-GCM-SHA256",
            "https_proxy": "http://127.0.0.1:9",
            "PYTHONSTARTUP": str(planted / "sitecustomize.py"),
        },
    )
    worker.wait_for("waiting-for-custodian")
    environment = Path(f"/proc/{worker.process.pid}/environ").read_bytes()
    names = {entry.partition(b"=")[0] for entry in environment.split(b"\0") if entry}
    assert names == {name.encode() for name in NODE_ENVIRONMENT}
    assert b"ECDHE-RSA" in environment
    worker.interrupt()
    code, errors = worker.finish()
    assert code == 130
    assert "Traceback" not in errors
    assert not key_log.exists()
