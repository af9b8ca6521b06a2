"""A trial on this machine: its parties' data, and a deployment for each fit."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from cloister.api.data import PartyData, as_stream
from cloister.api.task_file import TaskFile, TaskLike, task_file
from cloister.cli.deployment import TEES, DeploymentOrder, write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.names import check_name
from cloister.cli.recipes import Recipe
from cloister.cli.signing import sign_all_here
from cloister.errors import ConfigError
from cloister.federation.task import Precision
from cloister.plan.training import Wire
from cloister.plan.values import Option
from cloister.storage.record_stream import RecordStream

_RUN = "a"


class Settings(TypedDict, total=False):
    """How a local federation trains; the defaults are in brackets.

    Attributes:
        rounds: Rounds of training [100].
        batch_size: Examples a worker and step [32].
        learning_rate: Of the optimiser that descends on data; its peak [0.1].
        momentum: Likewise [0].
        weight_decay: Likewise [0].
        local_steps: Steps of each worker in a round, whose models are then averaged
            [none: gradients are averaged in every step].
        local_optimizer: What takes these steps: ``sgd``, or the optimiser of the
            ``task`` [sgd].
        schedule: Of the learning rate, as in a plan: its name, or a mapping of all its
            keys [constant].
        precision: ``float32`` or ``bfloat16`` [float32].
        threads: Of each worker [1].
        wire: How parameters travel: ``float32`` or ``bfloat16`` [float32].
        seed: Of first weights and batches [7].
        evaluate_every: Rounds between evaluations [in the end alone].
        initial: The model to start from, as the task exports one [the task's].
        graph: Whether the first worker seals the network's structure, too [no].
    """

    rounds: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    local_steps: int
    local_optimizer: str
    schedule: str | Mapping[str, Option]
    precision: Precision
    threads: int
    wire: Wire
    seed: int
    evaluate_every: int
    initial: Mapping[str, NDArray[np.generic]]
    graph: bool


class LocalParties:
    """The parties of a trial, all here.

    Args:
        streams: Each worker's records.
        task: What they train.
        options: Of the task.
        outside: Workers whose nodes are their owners' own machines.
        directory: Where deployments go; None for a temporary one.
    """

    def __init__(
        self,
        streams: Mapping[str, RecordStream],
        *,
        task: TaskFile,
        options: Mapping[str, Option],
        outside: Collection[str],
        directory: Path | None,
    ) -> None:
        self._streams = dict(streams)
        self._task = task
        self._options = dict(options)
        self._outside = frozenset(outside)
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="cloister-"))
        self._made = 0

    @classmethod
    def gather(
        cls,
        data: Mapping[str, PartyData],
        *,
        task: TaskLike,
        options: Mapping[str, Option],
        outside: Collection[str],
        held_out: float,
        directory: Path | str | None,
    ) -> Self:
        """Returns the parties of `data`; see `Federation.local`.

        Raises:
            CloisterError: If the task does not load, or data does not fit it.
        """
        if not data:
            raise ConfigError(
                "the federation has no worker",
                code="parties-missing",
                expected="the data of one at least, by its name",
            )
        for name in data:
            check_name(name)
        if strangers := sorted(set(outside) - set(data)):
            raise ConfigError(
                "a party outside has no data",
                code="party-unknown",
                expected=f"some of {', '.join(data)}",
                got=", ".join(strangers),
            )
        found = task_file(task)
        schema = found.schema(options)
        return cls(
            {
                name: as_stream(mine, schema, held_out=held_out)
                for name, mine in data.items()
            },
            task=found,
            options=options,
            outside=outside,
            directory=None if directory is None else Path(directory).absolute(),
        )

    def make(self, settings: Settings, *, tell: Callable[[str], None]) -> Path:
        """Writes a deployment, signs its plan for all, and returns the plan's path.

        Raises:
            CloisterError: If the settings do not fit, or a file cannot be written.
        """
        self._made += 1
        order = DeploymentOrder(
            directory=self.directory / f"fit-{self._made}",
            recipe=self._recipe(settings),
            run=_RUN,
            workers=tuple(
                (name, TEES[place % len(TEES)])
                for place, name in enumerate(self._streams)
            ),
            server_tee=TEES[0],
            data=None,
            by_identity=self._outside,
            graph=settings.get("graph", False),
        )
        plan_path = write_deployment(order, at=utc_now(), tell=tell)
        sign_all_here(plan_path, at=utc_now())
        return plan_path

    def close(self) -> None:
        """Removes the directory, if it is a temporary one."""
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _recipe(self, settings: Settings) -> Recipe:
        rounds = settings.get("rounds", 100)
        name, warmup, schedule = _schedule(settings.get("schedule", "constant"))
        return Recipe(
            name=_plan_name(self._task.class_name),
            task=self._task.path,
            task_class=self._task.class_name,
            options=self._options,
            rounds=rounds,
            batch_size=settings.get("batch_size", 32),
            precision=settings.get("precision", "float32"),
            learning_rate=settings.get("learning_rate", 0.1),
            momentum=settings.get("momentum", 0.0),
            weight_decay=settings.get("weight_decay", 0.0),
            schedule=name,
            schedule_settings=schedule,
            warmup_rounds=warmup,
            evaluate_every=settings.get("evaluate_every", rounds),
            local_steps=settings.get("local_steps"),
            local_optimizer=settings.get("local_optimizer", "sgd"),
            wire=settings.get("wire", "float32"),
            threads=settings.get("threads", 1),
            seed=settings.get("seed", 7),
            initial=settings.get("initial"),
            deal=self._deal,
        )

    def _deal(
        self, source: Path | None, parties: Sequence[str], seed: int
    ) -> Mapping[str, RecordStream]:
        """Everybody has its data already."""
        del source, parties, seed
        return self._streams


def check_settings(settings: Settings) -> Settings:
    """Returns the settings, if they are such.

    Raises:
        TypeError: If one is unknown, as for any unknown argument.
    """
    if unknown := sorted(set(settings) - set(Settings.__annotations__)):
        raise TypeError(
            f"fit() got an unexpected keyword argument {unknown[0]!r}; it takes"
            f" {', '.join(Settings.__annotations__)}"
        )
    return settings


def _schedule(
    schedule: str | Mapping[str, Option],
) -> tuple[str, int, dict[str, Option]]:
    """Returns a schedule's name, its warm-up, and what else it has."""
    if isinstance(schedule, str):
        return schedule, 0, {}
    rest = dict(schedule)
    name, warmup = rest.pop("name", ""), rest.pop("warmup_rounds", 0)
    if not isinstance(name, str) or not isinstance(warmup, int):
        raise ConfigError(
            "this is no schedule",
            code="schedule-invalid",
            expected="a name, or a mapping with the keys of a plan's schedule",
            got=repr(schedule),
            remedy="docs/how-to/plan.md lists the schedules.",
        )
    return name, warmup, rest


def _plan_name(class_name: str) -> str:
    """Returns what a plan may be called after a class."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", class_name).lower()
    return re.sub(r"[^a-z0-9-]+", "-", words).strip("-")[:32] or "trial"
