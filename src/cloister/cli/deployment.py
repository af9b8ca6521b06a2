"""Writes a simulated deployment: a plan, sites and custodians, data and keys.

It appears under its name whole or not at all. The development root's key stays in the
deployment's own directory, apart from every node's; a party's key stays with its
custodian. Nothing is signed: that is for people to do.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cloister.attestation.collateral_source import collateral_file_name
from cloister.attestation.platforms.measurement import (
    Measurement,
    measure_installation,
    node_measurement,
    running_interpreter,
)
from cloister.attestation.platforms.simulated.collateral import (
    write_simulated_collateral,
)
from cloister.attestation.platforms.simulated.root import create_simulated_root
from cloister.attestation.reports import Tee
from cloister.cli.deployment_files import PartyEntry, plan_text
from cloister.cli.deployment_sites import MadeCustodian, make_sites
from cloister.cli.interpreter import isolated_path
from cloister.cli.names import check_name
from cloister.cli.recipes import Recipe
from cloister.cli.whole_directory import whole_directory
from cloister.errors import ConfigError
from cloister.federation.task_loading import read_task_source
from cloister.plan.plan import Role, read_plan
from cloister.storage.model_vault import new_identity
from cloister.storage.raw_shard import digest_raw_shard
from cloister.workloads.shards import split_cifar, write_digit_shards

SERVER = "aggregator"
TEES: tuple[Tee, ...] = ("sgx", "tdx")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentOrder:
    """What to write.

    Attributes:
        directory: Where; must not exist, or be empty.
        recipe: What to train.
        run: The plan's run.
        workers: Names of the workers, each with the kind of its simulated platform.
        server_tee: Kind of the server's simulated platform.
        data: A CIFAR-10 binary directory to distribute; None for digits.
        seed: Decides how data is distributed.
        recipients: Names of attested recipients, each with its platform's kind.
    """

    directory: Path
    recipe: Recipe
    run: str
    workers: tuple[tuple[str, Tee], ...]
    server_tee: Tee
    data: Path | None
    seed: int = 7
    recipients: tuple[tuple[str, Tee], ...] = ()

    @property
    def parties(self) -> tuple[tuple[str, Tee, Role], ...]:
        """Name, platform and role of everybody, the server first."""
        return (
            (SERVER, self.server_tee, "server"),
            *((name, tee, "worker") for name, tee in self.workers),
            *((name, tee, "recipient") for name, tee in self.recipients),
        )

    @property
    def shareholders(self) -> tuple[str, ...]:
        """Whose custodians hold the shares of the state keys."""
        return (SERVER, *(name for name, _ in self.workers[:1]))


def write_deployment(
    order: DeploymentOrder, *, at: datetime, tell: Callable[[str], None]
) -> Path:
    """Writes the deployment and returns the path of its plan; nobody signed it yet.

    Args:
        order: What to write.
        at: Now; certificates begin here.
        tell: Receives a line about each longer step.

    Raises:
        ConfigError: If the directory is in use, or the data does not fit.
        StorageError: If a file cannot be written.
    """
    names = [name for name, _ in (*order.workers, *order.recipients)]
    for name in names:
        check_name(name)
    if len({SERVER, *names}) != len(names) + 1:
        raise ConfigError(
            "two parties share a name",
            code="name-repeats",
            expected=f"names that differ, and none called {SERVER}",
            got=", ".join(names),
        )
    with whole_directory(order.directory) as draft:
        _fill(draft, order, at=at, tell=tell)
        # What is written must be what `run` accepts.
        read_plan(draft / "plan.toml")
    return order.directory.resolve() / "plan.toml"


def _fill(
    draft: Path, order: DeploymentOrder, *, at: datetime, tell: Callable[[str], None]
) -> None:
    task_source = read_task_source(order.recipe.task)
    (draft / "task.py").write_bytes(task_source)
    tell("making a development root and simulated platforms")
    root, platforms = _make_platforms(draft, order, at=at)
    tell("distributing the data over the workers")
    _distribute(order, [draft / "parties" / name / "data" for name, _ in order.workers])
    tell("measuring what the nodes will run")
    measurements = _measure((task_source,), order)
    tell("making every party's keys and custodian")
    custodians = make_sites(
        draft, order.parties, shareholders=order.shareholders, at=at
    )
    recipient = _make_owner(draft / "owner")
    (draft / "plan.toml").write_text(
        plan_text(
            order.recipe,
            run=order.run,
            parties=tuple(
                _entry(draft, name, role, custodians[name], platforms[name])
                for name, _, role in order.parties
            ),
            root=root,
            measurements=measurements,
            recipient=recipient,
        )
    )


def _make_platforms(
    draft: Path, order: DeploymentOrder, *, at: datetime
) -> tuple[str, dict[str, str]]:
    """Makes a root, what it signed, and everybody's machine.

    What the root signed is copied to where nodes look; the root's keys stay apart.
    Returns the root's name, and the machines' PPIDs by party.
    """
    root = create_simulated_root(draft / "insecure-simulated-root", at=at)
    (draft / "trust-root.der").write_bytes(root.trust_root.der)
    write_simulated_collateral(root, at=at)
    (draft / "collateral").mkdir()
    for tee in TEES:
        name = collateral_file_name(tee)
        shutil.copyfile(root.directory / name, draft / "collateral" / name)
    platforms: dict[str, str] = {}
    for name, _, _ in order.parties:
        party = draft / "parties" / name
        party.mkdir(parents=True)
        platforms[name] = root.issue_platform(
            party / "insecure-simulated-platform",
            name=f"simulated platform of {name}",
            at=at,
        )
    return root.trust_root.name, platforms


def _distribute(order: DeploymentOrder, shards: Sequence[Path]) -> None:
    for shard in shards:
        shard.mkdir()
    if order.data is None:
        write_digit_shards(shards, seed=order.seed)
    else:
        split_cifar(order.data, shards)


def _measure(
    sources: Sequence[bytes], order: DeploymentOrder
) -> dict[str, Measurement]:
    installation = measure_installation(
        interpreter=running_interpreter(), search_path=isolated_path()
    )
    roles = dict.fromkeys(role for _, _, role in order.parties)
    return {
        role: node_measurement(installation, sources=sources, role=role)
        for role in roles
    }


def _make_owner(directory: Path) -> str:
    """Writes who may open the model; returns the recipient."""
    identity, recipient = new_identity()
    directory.mkdir()
    path = directory / "identity.txt"
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(f"# public key: {recipient}\n{identity}\n")
    return recipient


def _entry(
    draft: Path, name: str, role: Role, custodian: MadeCustodian, platform: str
) -> PartyEntry:
    shard = draft / "parties" / name / "data"
    return PartyEntry(
        name=name,
        role=role,
        key=custodian.key,
        platforms=(platform,),
        data=digest_raw_shard(shard) if role == "worker" else None,
        state_share=custodian.keys.get("state-share"),
        recipient=custodian.keys.get("vault"),
    )
