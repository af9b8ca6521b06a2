"""Deployments and real processes for the integration tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister.cli.deployment import DIGITS, DeploymentOrder, write_deployment
from cloister.cli.interpreter import NODE_ENVIRONMENT, node_command

CANARY_TASK = Path(__file__).parent / "canary_task.py"
ROUNDS = 40
# Long enough for a loaded machine, short enough to end a test that hangs.
LIMIT_SECONDS = 120.0

Event = dict[str, object]


class Deployment:
    """A deployment of server, alice and bob with the canary task."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.plan = directory / "plan.toml"
        self.identity = directory / "owner" / "identity.txt"

    @property
    def run_directory(self) -> Path:
        return self.directory / "runs" / "canary.test"

    @property
    def sealed_model(self) -> Path:
        return self.run_directory / "model.safetensors.age"

    def site(self, party: str) -> Path:
        return self.directory / "parties" / party / "site.toml"

    def data(self, party: str) -> Path:
        return self.directory / "parties" / party / "data"

    def edit(self, path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def log(self, party: str) -> list[Event]:
        path = self.run_directory / "logs" / f"{party}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def events(self, party: str, kind: str) -> list[Event]:
        return [event for event in self.log(party) if event["event"] == kind]

    def leftovers(self) -> list[str]:
        """Files in the run directory that are neither a log nor the sealed model."""
        return [
            str(path.relative_to(self.run_directory))
            for path in sorted(self.run_directory.rglob("*"))
            if path.is_file()
            and path != self.sealed_model
            and path.parent.name != "logs"
        ]


class Running:
    """A started command whose events can be waited for."""

    def __init__(
        self, command: list[str], *, environment: dict[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=NODE_ENVIRONMENT if environment is None else environment,
        )

    def wait_for(self, kind: str, *, party: str | None = None) -> Event:
        """Reads events until one of `kind` comes."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: Event = json.loads(line)
            if event.get("event") == kind and party in (None, event.get("party")):
                return event
        pytest.fail(f"no event {kind}: {self.finish()}")

    def finish(self) -> tuple[int, str]:
        """Waits for the end; returns the exit status and what went to stderr."""
        _, errors = self.process.communicate(timeout=LIMIT_SECONDS)
        return self.process.returncode, errors

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


Start = Callable[..., Running]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One deployment, written once: measuring the machine takes a second."""
    directory = tmp_path_factory.mktemp("template") / "deployment"
    recipe = replace(
        DIGITS,
        name="canary",
        task=CANARY_TASK,
        task_class="Canary",
        options={},
        rounds=ROUNDS,
        warmup_rounds=5,
        learning_rate=1.0,
        evaluate_every=10,
    )
    order = DeploymentOrder(
        directory=directory,
        recipe=recipe,
        run="test",
        workers=(("alice", "sgx"), ("bob", "tdx")),
        server_tee="sgx",
        data=None,
    )
    write_deployment(order, at=datetime.now(UTC), tell=lambda _: None)
    return directory


@pytest.fixture
def copy_deployment(template: Path, tmp_path: Path) -> Callable[[str], Deployment]:
    """Makes copies of the deployment; all share the ports of this test."""
    addresses = _free_addresses()

    def copy(name: str) -> Deployment:
        directory = tmp_path / name
        shutil.copytree(template, directory)
        for site in directory.glob("parties/*/site.toml"):
            lines = site.read_text().splitlines()
            site.write_text(
                "\n".join(
                    f'{key} = "{addresses[key]}"' if key in addresses else line
                    for line in lines
                    for key in [line.partition(" ")[0]]
                )
                + "\n"
            )
        return Deployment(directory)

    return copy


@pytest.fixture
def deployment(copy_deployment: Callable[[str], Deployment]) -> Deployment:
    return copy_deployment("deployment")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts ``cloister ARGUMENTS``; whatever still runs at the end is ended."""
    running: list[Running] = []

    def begin(*arguments: str, environment: dict[str, str] | None = None) -> Running:
        command = (
            node_command(arguments)
            if environment is None
            else [sys.executable, "-m", "cloister", *arguments]
        )
        running.append(Running(command, environment=environment))
        return running[-1]

    yield begin
    for process in running:
        process.close()


def cloister(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``cloister ARGUMENTS`` to its end."""
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "cloister", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
        env={**os.environ, "COLUMNS": "200"},
    )


def _free_addresses() -> dict[str, str]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return {
            "enrolment": f"127.0.0.1:{first.getsockname()[1]}",
            "training": f"127.0.0.1:{second.getsockname()[1]}",
        }
