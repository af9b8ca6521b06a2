"""A real deployment of a server, three workers and everybody's custodian.

Made and signed once. A quiet run and a disturbed one are copies of it, so they have the
plan, its hash, all keys and all data in common; only addresses may differ, which stand
in sites. The task is the softmax regression of `examples/softmax`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloister.api import deal_in_turn
from cloister.cli.deployment import SERVER, DeploymentOrder, write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.interpreter import node_command
from cloister.cli.recipes import Recipe
from cloister.cli.signing import sign_all_here
from cloister.plan.training import Mode
from cloister.storage.record_stream import RecordStream
from cloister.workloads.digits import DigitStream

__all__ = ["PARTIES", "SERVER", "SERVICES", "WORKERS", "Deployment", "make_deployment"]

WORKERS = ("north", "south", "west")
PARTIES = (SERVER, *WORKERS)
_TASK = Path(__file__).parents[1] / "examples" / "softmax" / "task.py"
_LIMIT_SECONDS = 120.0


def custodian_of(party: str) -> str:
    """Returns what a party's custodian is called here."""
    return f"custodian-of-{party}"


# Everybody who has a process.
SERVICES = (*map(custodian_of, PARTIES), *PARTIES)


def _deal(
    source: Path | None, parties: Sequence[str], seed: int
) -> Mapping[str, RecordStream]:
    del source
    digits = DigitStream(seed=seed, image_shape=(192,))
    return dict(zip(parties, deal_in_turn(digits, len(parties)), strict=True))


_RECIPE = Recipe(
    name="chaos",
    task=_TASK,
    task_class="Softmax",
    options={"features": 192, "classes": 10},
    rounds=1,
    batch_size=32,
    precision="float32",
    learning_rate=0.3,
    weight_decay=1e-4,
    warmup_rounds=10,
    evaluate_every=50,
    deal=_deal,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A deployment on disk, signed by all.

    Attributes:
        directory: Where.
        rounds: Rounds of its plan.
    """

    directory: Path
    rounds: int

    @property
    def plan(self) -> Path:
        """The plan."""
        return self.directory / "plan.toml"

    @property
    def run_directory(self) -> Path:
        """Where its run lies."""
        return self.directory / "runs" / "chaos.bench"

    def copy(self, to: Path) -> Deployment:
        """Returns a copy, with all keys and signatures."""
        shutil.copytree(self.directory, to)
        return replace(self, directory=to)

    def command(self, service: str) -> list[str]:
        """Returns the command line that starts one of `SERVICES`."""
        if service in WORKERS:
            arguments = ["worker", "--party", service, "--plan", str(self.plan)]
        elif service == SERVER:
            arguments = ["server", "--plan", str(self.plan)]
        else:
            party = service.removeprefix(custodian_of(""))
            place = self.directory / "custodians" / party
            arguments = ["custodian", "serve", str(place)]
        return node_command([*arguments, "--json", "--tethered"])

    def move(self, hosts: Mapping[str, str]) -> None:
        """Puts everybody's host into sites and custodians' files; ports stay.

        Args:
            hosts: IPv4 addresses by service.
        """
        keys = {"enrolment": SERVER, "training": SERVER}
        keys |= {party: custodian_of(party) for party in PARTIES}
        for party in PARTIES:
            keys["address"] = custodian_of(party)
            for file in (
                self.directory / "parties" / party / "site.toml",
                self.directory / "custodians" / party / "custodian.toml",
            ):
                lines = [
                    _moved(it, keys, hosts) for it in file.read_text().splitlines()
                ]
                file.write_text("\n".join(lines) + "\n")

    def opened_model(self) -> bytes:
        """Returns the bytes of the model, opened by its owner."""
        output = self.directory / "model.safetensors"
        identity = self.directory / "owner" / "identity.txt"
        place, key = str(self.run_directory), str(identity)
        cloister("model", "open", place, "--identity", key, "-o", str(output), "--json")
        return output.read_bytes()

    def verified_audit(self) -> dict[str, Any]:
        """Returns what `cloister audit verify` reports; raises if it refuses."""
        place = str(self.run_directory)
        report = cloister("audit", "verify", place, "--plan", str(self.plan), "--json")
        found: dict[str, Any] = json.loads(report)
        return found


def make_deployment(directory: Path, *, mode: Mode, rounds: int) -> Deployment:
    """Writes a deployment and has everybody sign its plan.

    Args:
        directory: Where; must not exist.
        mode: What a worker does in a round.
        rounds: How many.
    """
    recipe = replace(_RECIPE, local_steps=4 if mode == "fedavg" else None)
    order = DeploymentOrder(
        directory=directory,
        recipe=recipe.for_rounds(rounds),
        run="bench",
        workers=tuple(zip(WORKERS, ("sgx", "tdx", "tdx"), strict=True)),
        server_tee="sgx",
        data=None,
    )
    plan = write_deployment(order, at=utc_now(), tell=lambda _: None)
    sign_all_here(plan, at=utc_now())
    return Deployment(directory=directory, rounds=rounds)


def cloister(*arguments: str) -> str:
    """Returns what a command that must succeed says on its standard output.

    Raises:
        RuntimeError: If it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "cloister", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"cloister {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _moved(line: str, keys: Mapping[str, str], hosts: Mapping[str, str]) -> str:
    """Returns a line of a site with its address at another host, if it has one."""
    key, _, value = line.partition(" = ")
    if key not in keys or not value.startswith('"'):
        return line
    port = value.strip('"').rpartition(":")[2]
    return f'{key} = "{hosts[keys[key]]}:{port}"'
