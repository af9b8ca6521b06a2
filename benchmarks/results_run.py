"""Carries out the runs behind the results: real ones, from a plan to a sealed model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cloister.api import Federation, Trained
from cloister.cli.commands.init import order_for
from cloister.cli.deployment import DeploymentOrder, write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.processes import Event
from cloister.cli.recipes import Recipe
from cloister.cli.signing import sign_all_here
from cloister.cli.site_files import DATA_FILE
from cloister.federation.task import LearnerSettings, Task
from cloister.plan.plan import Plan, read_plan
from cloister.storage.record_stream import RecordStream
from cloister.storage.records import DataSource
from cloister.storage.sealed_data import read_sealed_data

Edit = Callable[[Recipe], Recipe]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run and what it was about.

    Attributes:
        trained: What came of it.
        train: Records to train on, of all parties.
        held_out: Records held out.
        seconds: From the start of the processes to their end.
    """

    trained: Trained
    train: int
    held_out: int
    seconds: float

    @property
    def plan(self) -> Plan:
        """What was run."""
        return self.trained.plan

    @property
    def epochs(self) -> float:
        """How often every training record was used, on average."""
        training = self.plan.training
        steps = training.rounds * (training.local_steps or 1)
        return steps * training.batch_size * len(self.plan.workers) / self.train

    @property
    def split(self) -> str:
        """How the records were divided."""
        workers = len(self.plan.workers)
        dealt = f", dealt to {workers} workers" if workers > 1 else ", one worker"
        return f"{self.train:,} to train, {self.held_out:,} held out{dealt}"


@contextmanager
def scratch() -> Iterator[Path]:
    """Yields a directory for a deployment; it is removed with everything in it."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "deployment"


def run_recipe(
    name: str,
    *,
    data: Path | None = None,
    edit: Edit = lambda recipe: recipe,
    on_event: Callable[[Event], None] | None = None,
) -> Outcome:
    """Runs a recipe of `cloister init`, changed by `edit`."""
    with scratch() as directory:
        order = order_for(directory, data=data, name=name)
        return run(replace(order, recipe=edit(order.recipe)), on_event=on_event)


def run_streams(
    name: str, streams: Mapping[str, RecordStream], *, edit: Edit
) -> Outcome:
    """Runs a recipe with workers of these names, on these records."""

    def deal(*_: object) -> Mapping[str, RecordStream]:
        return streams

    with scratch() as directory:
        order = order_for(directory, data=None, name=name, workers=tuple(streams))
        recipe = replace(edit(order.recipe), deal=deal)
        return run(replace(order, recipe=recipe))


def run(
    order: DeploymentOrder, *, on_event: Callable[[Event], None] | None = None
) -> Outcome:
    """Writes a deployment, signs its plan for all, and runs it."""
    plan_path = write_deployment(order, at=utc_now(), tell=lambda _: None)
    sign_all_here(plan_path, at=utc_now())
    train, held_out = _records(plan_path)
    began = time.perf_counter()
    with Federation.from_plan(plan_path) as federation:
        trained = federation.fit(quiet=True, on_event=on_event)
    return Outcome(
        trained=trained,
        train=train,
        held_out=held_out,
        seconds=time.perf_counter() - began,
    )


def accuracy_of(outcome: Outcome, task: Task, source: DataSource) -> float:
    """Returns the share of held-out records that a run's model gets right.

    As the model's owner finds out. The server tells of no metric that is one party's
    alone, so of a run with one worker it tells none.
    """
    training = outcome.plan.training
    learner = task.learner(
        source,
        LearnerSettings(
            party="owner",
            batch_size=training.batch_size,
            seed=training.seed,
            threads=training.threads,
            precision=training.precision,
        ),
    )
    learner.load(task.load_exported(outcome.trained.arrays))
    evaluation = learner.evaluate()
    return evaluation.sums["accuracy"] / evaluation.examples


def _records(plan_path: Path) -> tuple[int, int]:
    """Returns how many records the sealed data sets of a plan hold together."""
    manifests = [
        read_sealed_data(plan_path.parent / "parties" / party.name / DATA_FILE).manifest
        for party in read_plan(plan_path).workers
    ]
    return sum(it.train for it in manifests), sum(it.held_out for it in manifests)
