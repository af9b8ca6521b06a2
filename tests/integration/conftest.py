"""Deployments and real processes for the integration tests."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from tests.support.addresses import free_addresses as unused_addresses

from cloister.attestation.reports import Tee
from cloister.cli.custodians import open_keys
from cloister.cli.data_sealing import seal_for
from cloister.cli.deployment import DeploymentOrder, write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.interpreter import NODE_ENVIRONMENT, node_command
from cloister.cli.places import read_custodian_place
from cloister.cli.recipes import DIGITS
from cloister.cli.signing import read_plan_file, sign_all_here
from cloister.cli.site_files import DATA_FILE
from cloister.custody.register import Register
from cloister.storage.data_sealing import SealedData
from cloister.storage.record_stream import RecordStream
from cloister.workloads.dealing import deal_in_turn
from cloister.workloads.digits import DigitStream

CANARY_TASK = Path(__file__).parent / "canary_task.py"
ROUNDS = 40
PARTIES = ("aggregator", "alice", "bob")
RUN_ID = "canary/test"
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

    @property
    def audit(self) -> Path:
        return self.run_directory / "audit.jsonl"

    def site(self, party: str) -> Path:
        return self.directory / "parties" / party / "site.toml"

    def custodian(self, party: str) -> Path:
        return self.directory / "custodians" / party

    def register(self, party: str) -> Register:
        return Register.open(self.custodian(party) / "custodian.sqlite")

    def sign(self) -> None:
        """Has every party consent to the plan as it is now."""
        sign_all_here(self.plan, at=utc_now())

    def consent(self, party: str) -> Path:
        return read_plan_file(self.plan).consents / f"{party}.json"

    def drop_shares(self, party: str) -> None:
        """Takes a site's ``[shares]`` away: nobody gives its node one."""
        section = re.compile(r"^\[shares\].*?(?=^\[|\Z)", re.MULTILINE | re.DOTALL)
        text, found = section.subn("", self.site(party).read_text())
        assert found == 1
        self.site(party).write_text(text)

    def data(self, party: str) -> Path:
        """Where the sealed records of a worker lie."""
        return self.directory / "parties" / party / DATA_FILE

    def seal(
        self, party: str, stream: RecordStream, *, key: str | None = None
    ) -> SealedData:
        """Seals other records for a party, where a worker's lie.

        Args:
            party: Whose custodian seals them; it makes a data key if it has none.
            stream: The records.
            key: Which of its data keys; None for the only one.
        """
        place = read_custodian_place(self.custodian(party))
        with self.register(party) as register:
            if all(row.kind != "data" for row in register.kept_keys()):
                keys = open_keys(place, register)
                keys.add("data", label="tests", at=utc_now())
        self.data(party).unlink(missing_ok=True)
        return seal_for(place, stream, path=self.data(party), key=key)

    def edit(self, path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def log(self, party: str) -> list[Event]:
        return events_in(self.run_directory / "logs" / f"{party}.jsonl")

    def custodian_log(self, party: str) -> list[Event]:
        return events_in(self.custodian(party) / "logs" / f"{party}-custodian.jsonl")

    def events(self, party: str, kind: str) -> list[Event]:
        return [event for event in self.log(party) if event["event"] == kind]

    def leftovers(self) -> list[str]:
        """Files in the run directory: no log, not the sealed model, no sealed state."""
        return [
            str(path.relative_to(self.run_directory))
            for path in sorted(self.run_directory.rglob("*"))
            if path.is_file()
            and path not in {self.sealed_model, self.audit}
            and path.parent.name not in {"logs", "state"}
        ]

    @property
    def states(self) -> list[str]:
        """Names of what nodes keep of their state."""
        return sorted(path.name for path in (self.run_directory / "state").iterdir())


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

        # Read all the time: a process whose pipe is full stands still. Taken from the
        # process, so that the wait for its end leaves it alone.
        lines, self.process.stdout = self.process.stdout, None
        assert lines is not None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(lines, self._lines)).start()

    def wait_for(self, kind: str, *, party: str | None = None) -> Event:
        """Reads events until one of `kind` comes."""
        while (line := self._lines.get(timeout=LIMIT_SECONDS)) is not None:
            event: Event = json.loads(line)
            if event.get("event") == kind and party in (None, event.get("party")):
                return event
        pytest.fail(f"no event {kind}: {self.finish()}")

    def finish(self) -> tuple[int, str]:
        """Waits for the end; returns the exit status and what went to stderr."""
        _, errors = self.process.communicate(timeout=LIMIT_SECONDS)
        return self.process.returncode, errors

    def rest(self) -> list[Event]:
        """Returns the events that nobody waited for; nothing else may be there."""
        found: list[Event] = []
        while (line := self._lines.get(timeout=LIMIT_SECONDS)) is not None:
            found.append(json.loads(line))
        return found

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


Start = Callable[..., Running]


def _read_lines(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def events_in(path: Path) -> list[Event]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def share_of(party: str) -> RecordStream:
    """Returns the records that a deployment deals to alice or bob."""
    return deal_in_turn(DigitStream(seed=7), 2)[("alice", "bob").index(party)]


def write_signed(
    directory: Path, *, recipients: tuple[tuple[str, Tee], ...] = ()
) -> Deployment:
    """Writes a deployment and has everybody sign its plan."""
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
        recipients=recipients,
    )
    write_deployment(order, at=utc_now(), tell=lambda _: None)
    deployment = Deployment(directory)
    deployment.sign()
    return deployment


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One signed deployment, made once: measuring the machine takes a second."""
    return write_signed(tmp_path_factory.mktemp("template") / "deployment").directory


@pytest.fixture
def copy_deployment(template: Path, tmp_path: Path) -> Callable[[str], Deployment]:
    """Makes copies of the deployment; all share the ports of this test."""
    addresses = free_addresses(2 + len(PARTIES))
    ports = dict(zip(("enrolment", "training"), addresses, strict=False))
    custodians = dict(zip(PARTIES, addresses[2:], strict=True))

    def copy(name: str) -> Deployment:
        directory = tmp_path / name
        shutil.copytree(template, directory)
        for party, address in custodians.items():
            for file in (
                directory / "parties" / party / "site.toml",
                directory / "custodians" / party / "custodian.toml",
            ):
                # Shareholders' custodians stand in a site by their party.
                put_addresses(file, {**ports, **custodians, "address": address})
        return Deployment(directory)

    return copy


def put_addresses(file: Path, addresses: dict[str, str]) -> None:
    """Puts addresses into a site or a custodian's file, by their keys."""
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join(
            f'{key} = "{addresses[key]}"' if key in addresses else line
            for line in lines
            for key in [line.partition(" ")[0]]
        )
        + "\n"
    )


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


@pytest.fixture
def start_custodians(start: Start) -> Callable[..., list[Running]]:
    """Starts custodians of a deployment by hand, all at once; waits for their ports."""

    def begin(deployment: Deployment, *parties: str) -> list[Running]:
        started = [
            start("custodian", "serve", str(deployment.custodian(it)), "--json")
            for it in parties or PARTIES
        ]
        for each in started:
            each.wait_for("custodian-listening")
        return started

    return begin


StartCustodians = Callable[..., list[Running]]


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


def free_addresses(count: int) -> list[str]:
    return [str(address) for address in unused_addresses(count)]
