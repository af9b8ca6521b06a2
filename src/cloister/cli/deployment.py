"""Writes a simulated deployment: a plan, sites and custodians, sealed data and keys.

It appears under its name whole or not at all. The development root's key stays in the
deployment's own directory, apart from every node's; a party's keys stay with its
custodian, which seals the party's records: they lie nowhere in the clear. Nothing is
signed: that is for people to do.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from safetensors.numpy import save

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
from cloister.cli.data_sealing import seal_for
from cloister.cli.deployment_files import (
    INITIAL_FILE,
    ModelEntry,
    PartyEntry,
    plan_text,
)
from cloister.cli.deployment_sites import MadeCustodian, PartyOrder, make_sites
from cloister.cli.interpreter import isolated_path
from cloister.cli.names import check_name
from cloister.cli.places import default_custodian_path, read_custodian_place
from cloister.cli.recipes import Recipe
from cloister.cli.site_files import DATA_FILE
from cloister.cli.whole_directory import whole_directory
from cloister.errors import ConfigError
from cloister.federation.task_loading import read_task_source
from cloister.plan.plan import Role, read_plan
from cloister.storage.model_vault import new_identity
from cloister.storage.record_stream import RecordStream

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
        data: Where the recipe's data comes from; None where it is bundled.
        seed: Decides how data is dealt out.
        recipients: Names of attested recipients, each with its platform's kind.
        by_identity: Workers whose nodes run on their owners' own machines, and prove
            whose they are by the party's key alone.
        graph: Whether the first worker seals the network's structure, too.
    """

    directory: Path
    recipe: Recipe
    run: str
    workers: tuple[tuple[str, Tee], ...]
    server_tee: Tee
    data: Path | None
    seed: int = 7
    recipients: tuple[tuple[str, Tee], ...] = ()
    by_identity: frozenset[str] = frozenset()
    graph: bool = False

    @property
    def parties(self) -> tuple[PartyOrder, ...]:
        """Everybody, the server first."""
        return (
            PartyOrder(name=SERVER, role="server", tee=self.server_tee),
            *(
                PartyOrder(
                    name=name,
                    role="worker",
                    tee=None if name in self.by_identity else tee,
                )
                for name, tee in self.workers
            ),
            *(
                PartyOrder(name=name, role="recipient", tee=tee)
                for name, tee in self.recipients
            ),
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
    # Before anything is made: what is wrong with the data is wrong now, too.
    data = order.recipe.deal(
        order.data, [name for name, _ in order.workers], order.seed
    )
    with whole_directory(order.directory) as draft:
        _fill(draft, order, data, at=at, tell=tell)
        # What is written must be what `run` accepts.
        read_plan(draft / "plan.toml")
    return order.directory.resolve() / "plan.toml"


def _fill(
    draft: Path,
    order: DeploymentOrder,
    data: Mapping[str, RecordStream],
    *,
    at: datetime,
    tell: Callable[[str], None],
) -> None:
    task_source = read_task_source(order.recipe.task)
    (draft / "task.py").write_bytes(task_source)
    tell("making a development root and simulated platforms")
    root, platforms = _make_platforms(draft, order, at=at)
    tell("making every party's keys and custodian")
    custodians = make_sites(
        draft, order.parties, shareholders=order.shareholders, at=at
    )
    tell("sealing the data that goes to each worker")
    pins = _seal(draft, data)
    tell("measuring what the nodes will run")
    measurements = _measure((task_source,), order)
    (draft / "plan.toml").write_text(
        plan_text(
            order.recipe,
            run=order.run,
            parties=tuple(
                _entry(party, custodians[party.name], platforms, pins)
                for party in order.parties
            ),
            root=root,
            measurements=measurements,
            model=ModelEntry(
                recipient=_make_owner(draft / "owner"),
                initial=_write_initial(draft, order.recipe),
                graph=order.workers[0][0] if order.graph else None,
            ),
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
    for party in order.parties:
        directory = draft / "parties" / party.name
        directory.mkdir(parents=True)
        if party.tee is None:
            continue
        platforms[party.name] = root.issue_platform(
            directory / "insecure-simulated-platform",
            name=f"simulated platform of {party.name}",
            at=at,
        )
    return root.trust_root.name, platforms


def _seal(draft: Path, data: Mapping[str, RecordStream]) -> dict[str, str]:
    """Seals each party's records under its own data key; returns their digests."""
    plan_path = draft / "plan.toml"
    pins: dict[str, str] = {}
    for name, stream in data.items():
        sealed = seal_for(
            read_custodian_place(default_custodian_path(plan_path, name)),
            stream,
            path=draft / "parties" / name / DATA_FILE,
        )
        pins[name] = sealed.digest
    return pins


def _write_initial(draft: Path, recipe: Recipe) -> str | None:
    """Writes the model to start from, if the recipe has one; returns its SHA-256."""
    if recipe.initial is None:
        return None
    content = save(dict(recipe.initial))
    (draft / INITIAL_FILE).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _measure(
    sources: Sequence[bytes], order: DeploymentOrder
) -> dict[str, Measurement]:
    installation = measure_installation(
        interpreter=running_interpreter(), search_path=isolated_path()
    )
    roles: dict[Role, None] = dict.fromkeys(
        party.role for party in order.parties if party.tee is not None
    )
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
    party: PartyOrder,
    custodian: MadeCustodian,
    platforms: Mapping[str, str],
    pins: Mapping[str, str],
) -> PartyEntry:
    return PartyEntry(
        name=party.name,
        role=party.role,
        key=custodian.key,
        platforms=None if party.tee is None else (platforms[party.name],),
        data=pins.get(party.name),
        data_key=custodian.keys.get("data"),
        state_share=custodian.keys.get("state-share"),
        recipient=custodian.keys.get("vault"),
    )
