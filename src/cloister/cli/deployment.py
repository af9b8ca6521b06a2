"""Writes a simulated deployment: a plan, a site for every party, data and keys.

It appears under its name whole or not at all: everything is written beside it first.
The development root's key stays in the deployment's own directory, apart from every
node's.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

import cloister.workloads
from cloister.attestation.collateral_source import collateral_file_name
from cloister.attestation.platforms.measurement import (
    measure_installation,
    node_measurement,
    running_interpreter,
)
from cloister.attestation.platforms.simulated.collateral import (
    write_simulated_collateral,
)
from cloister.attestation.platforms.simulated.root import create_simulated_root
from cloister.attestation.reports import Tee
from cloister.cli.deployment_files import PartyEntry, Recipe, plan_text, site_text
from cloister.cli.interpreter import isolated_path
from cloister.custody.insecure_local import new_insecure_party_key
from cloister.errors import ConfigError, PlatformError, StorageError
from cloister.federation.task_loading import read_task_source
from cloister.plan.plan import Name, read_plan
from cloister.storage.model_vault import new_identity
from cloister.storage.raw_shard import digest_raw_shard
from cloister.workloads.shards import split_cifar, write_digit_shards

SERVER = "aggregator"
TEES: tuple[Tee, ...] = ("sgx", "tdx")
_IMAGE_TASK = Path(cloister.workloads.__file__).parent / "image_classification.py"

DIGITS = Recipe(
    name="digits",
    task=_IMAGE_TASK,
    task_class="ImageClassification",
    options={"depth": 56, "image_size": 8, "crop_padding": 1, "flip": False},
    rounds=200,
    batch_size=64,
    precision="float32",
    learning_rate=0.1,
    weight_decay=2e-4,
    warmup_rounds=20,
    evaluate_every=40,
)
CIFAR = Recipe(
    name="cifar-10",
    task=_IMAGE_TASK,
    task_class="ImageClassification",
    options={"depth": 56, "image_size": 32, "crop_padding": 2, "flip": True},
    rounds=220,
    batch_size=64,
    precision="bfloat16",
    learning_rate=0.2,
    weight_decay=2e-4,
    warmup_rounds=20,
    evaluate_every=55,
)


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
    """

    directory: Path
    recipe: Recipe
    run: str
    workers: tuple[tuple[str, Tee], ...]
    server_tee: Tee
    data: Path | None
    seed: int = 7


def write_deployment(
    order: DeploymentOrder, *, at: datetime, tell: Callable[[str], None]
) -> Path:
    """Writes the deployment and returns the path of its plan.

    Args:
        order: What to write.
        at: Now; certificates begin here.
        tell: Receives a line about each longer step.

    Raises:
        ConfigError: If the directory is in use, or the data does not fit.
        StorageError: If a file cannot be written.
    """
    names = [name for name, _ in order.workers]
    for name in names:
        _check_name(name)
    if len({SERVER, *names}) != len(names) + 1:
        raise ConfigError(
            "two parties share a name",
            code="name-repeats",
            expected=f"names that differ, and none called {SERVER}",
            got=", ".join(names),
        )
    target = order.directory.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"{order.directory} is in use",
            code="directory-in-use",
            expected="a new or empty directory",
            remedy="Choose another, or remove it.",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _cannot_write(order.directory, error) from error
    try:
        _fill(draft, order, at=at, tell=tell)
        # What is written must be what `run` accepts.
        read_plan(draft / "plan.toml")
        # mkdtemp's 0700 stays: there are keys inside.
        draft.replace(target)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise _cannot_write(order.directory, error) from error
    except BaseException:
        # Also on Ctrl-C: there are keys in the draft. Raised again below.
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return target / "plan.toml"


def _fill(
    draft: Path, order: DeploymentOrder, *, at: datetime, tell: Callable[[str], None]
) -> None:
    task_source = read_task_source(order.recipe.task)
    (draft / "task.py").write_bytes(task_source)
    tell("making a development root and simulated platforms")
    root = create_simulated_root(draft / "insecure-simulated-root", at=at)
    (draft / "trust-root.der").write_bytes(root.trust_root.der)
    write_simulated_collateral(root, at=at)
    _publish_collateral(draft)
    names = [(SERVER, order.server_tee), *order.workers]
    for name, _ in names:
        party = draft / "parties" / name
        party.mkdir(parents=True)
        root.issue_platform(
            party / "insecure-simulated-platform",
            name=f"simulated platform of {name}",
            at=at,
        )
    tell("distributing the data over the workers")
    shards = [draft / "parties" / name / "data" for name, _ in order.workers]
    _distribute(order, shards)
    tell("measuring what the nodes will run")
    installation = measure_installation(
        interpreter=running_interpreter(), search_path=isolated_path()
    )
    identity, recipient = new_identity()
    owner = draft / "owner"
    owner.mkdir()
    _write_secret(owner / "identity.txt", f"# public key: {recipient}\n{identity}\n")
    entries = [
        PartyEntry(
            name=name,
            role="server" if name == SERVER else "worker",
            key=new_insecure_party_key(
                draft / "parties" / name / "insecure-party-key.pem"
            ),
            data=None
            if name == SERVER
            else digest_raw_shard(draft / "parties" / name / "data"),
        )
        for name, _ in names
    ]
    (draft / "plan.toml").write_text(
        plan_text(
            order.recipe,
            run=order.run,
            parties=tuple(entries),
            root=root.trust_root.name,
            measurements={
                role: node_measurement(installation, task_source=task_source, role=role)
                for role in ("server", "worker")
            },
            recipient=recipient,
        )
    )
    enrolment, training = _free_addresses()
    for name, tee in names:
        (draft / "parties" / name / "site.toml").write_text(
            site_text(
                party=name,
                tee=tee,
                enrolment=enrolment,
                training=training,
                with_data=name != SERVER,
            )
        )


def _publish_collateral(draft: Path) -> None:
    """Copies what the root signed to where nodes look; the root's keys stay apart."""
    (draft / "collateral").mkdir()
    for tee in TEES:
        name = collateral_file_name(tee)
        shutil.copyfile(
            draft / "insecure-simulated-root" / name, draft / "collateral" / name
        )


def _check_name(name: str) -> None:
    """Refuses a name that the plan would, before it becomes a path."""
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise ConfigError(
            "a worker's name is unusable",
            code="name-invalid",
            expected="1 to 32 lower-case letters, digits and dashes, no dash first",
            got=repr(name[:80]),
        ) from error


def _distribute(order: DeploymentOrder, shards: Sequence[Path]) -> None:
    for shard in shards:
        shard.mkdir()
    if order.data is None:
        write_digit_shards(shards, seed=order.seed)
    else:
        split_cifar(order.data, shards)


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text)


def _free_addresses() -> tuple[str, str]:
    """Returns two loopback addresses nobody uses at this moment."""
    try:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            ports = first.getsockname()[1], second.getsockname()[1]
    except OSError as error:
        raise PlatformError(
            "no free port on the loopback interface",
            code="port-unusable",
            got=error.strerror or "an error",
        ) from error
    return f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"


def _cannot_write(directory: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write the deployment {directory}",
        code="deployment-unwritable",
        got=error.strerror or "an error",
    )
