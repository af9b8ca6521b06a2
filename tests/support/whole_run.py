"""A whole run in this process: a server and its workers over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.softmax.task import Softmax
from tests.support.addresses import free_addresses
from tests.support.plan_tree import CLASSES, FEATURES, WORKERS
from tests.support.recorded_log import Event, read_events
from tests.support.records_in_memory import clouds

from cloister.cli.journal import open_journal
from cloister.cli.output import error_object
from cloister.errors import CloisterError
from cloister.federation.server import Outcome, ServerSettings, serve
from cloister.federation.task import Task
from cloister.federation.worker import WorkerSettings, work
from cloister.plan.site import Address
from cloister.ratls.node import Node
from cloister.storage.records import DataSource

PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Who takes part in a run, and where.

    Attributes:
        directory: The run directory.
        enrolment: Where the server enrols.
        training: Where the server trains.
        patience_seconds: Everybody's patience.
    """

    directory: Path
    enrolment: Address
    training: Address
    patience_seconds: float = PATIENCE_SECONDS

    @property
    def model_path(self) -> Path:
        """Where the sealed model goes."""
        return self.directory / "model.safetensors.age"

    def events(self, party: str, name: str | None = None) -> list[Event]:
        """Returns a party's log on disk."""
        return read_events(self.directory / "logs" / f"{party}.jsonl", name)

    def files(self) -> list[str]:
        """Returns every file of the run directory."""
        return sorted(
            str(path.relative_to(self.directory))
            for path in self.directory.rglob("*")
            if path.is_file()
        )

    async def serve(self, node: Node, task: Task) -> Outcome:
        """Runs a server; a failure is its log's last line, as in a node's process."""
        settings = ServerSettings(
            enrolment=self.enrolment,
            training=self.training,
            patience_seconds=self.patience_seconds,
            model_path=self.model_path,
        )
        with open_journal(self.directory, party=node.party, as_json=False) as log:
            try:
                return await serve(node, task, settings=settings, log=log)
            except CloisterError as error:
                log.error("failed", **error_object(error))  # noqa: TRY400
                raise

    async def work(self, node: Node, task: Task, source: DataSource) -> None:
        """Runs a worker; a failure is its log's last line."""
        settings = WorkerSettings(
            enrolment=self.enrolment,
            training=self.training,
            patience_seconds=self.patience_seconds,
        )
        with open_journal(self.directory, party=node.party, as_json=False) as log:
            try:
                await work(node, task, source=source, settings=settings, log=log)
            except CloisterError as error:
                log.error("failed", **error_object(error))  # noqa: TRY400
                raise


def make_scene(directory: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> Scene:
    """Returns a scene at two free addresses."""
    enrolment, training = free_addresses(2)
    return Scene(
        directory=directory,
        enrolment=enrolment,
        training=training,
        patience_seconds=patience_seconds,
    )


def task() -> Softmax:
    """Returns the plan's task."""
    return Softmax(FEATURES, CLASSES)


def sources() -> dict[str, DataSource]:
    """Returns every worker's data, disjoint and always the same."""
    return {
        name: clouds(seed=seed, features=FEATURES, classes=CLASSES)
        for seed, name in enumerate(WORKERS, 1)
    }


async def whole_run(
    scene: Scene, nodes: Mapping[str, Node], tasks: Mapping[str, Task] | None = None
) -> Outcome:
    """Runs all nodes to their end; returns the server's outcome.

    Raises:
        ExceptionGroup: With the error of every node that failed.
    """
    tasks = tasks or {}
    data = sources()
    outcome, *others = await asyncio.gather(
        scene.serve(nodes["aggregator"], tasks.get("aggregator", task())),
        *(
            scene.work(nodes[name], tasks.get(name, task()), data[name])
            for name in WORKERS
        ),
        return_exceptions=True,
    )
    failed = [it for it in (outcome, *others) if isinstance(it, Exception)]
    if failed:
        raise ExceptionGroup("nodes failed", failed)
    assert isinstance(outcome, Outcome)
    return outcome
