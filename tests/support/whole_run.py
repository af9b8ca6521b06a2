"""A whole run in this process: a server and its workers over real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from examples.softmax.task import Softmax, SoftmaxLearner
from structlog.typing import FilteringBoundLogger
from tests.support.addresses import free_addresses
from tests.support.custodians import Custodians
from tests.support.federation_in_memory import WARRANT_LIFE, Federation, HandClock
from tests.support.plan_tree import CLASSES, FEATURES, WORKERS
from tests.support.recorded_log import Event, read_events
from tests.support.records_in_memory import clouds
from tests.support.run_audit import open_log_of
from typing_extensions import override

from cloister.cli.journal import open_journal
from cloister.cli.output import error_object
from cloister.custody.audit_export import head_of_run, sign_head
from cloister.errors import CloisterError
from cloister.federation.audit_log import AuditLog
from cloister.federation.custodian import Custodian
from cloister.federation.layout import ModelBuffer
from cloister.federation.server import Outcome, ServerSettings, serve
from cloister.federation.task import LearnerSettings, StepReport, Task
from cloister.federation.worker import WorkerSettings, work
from cloister.plan.plan import Plan, plan_hash
from cloister.plan.site import Address
from cloister.ratls.node import Node
from cloister.ratls.warrant import HeldWarrant
from cloister.storage.dsse import Envelope, parse_envelope
from cloister.storage.keys import Secret
from cloister.storage.mirror.subject import MirrorPlace, Subject
from cloister.storage.records import DataSource

PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Who takes part in a run, and where.

    Attributes:
        directory: The run directory.
        enrolment: Where the server enrols.
        training: Where the server trains.
        custodians: Everybody's custodian; open while its node runs.
        patience_seconds: Everybody's patience.
        elapsed: Everybody's counter of the seconds in which a custodian is silent.
    """

    directory: Path
    enrolment: Address
    training: Address
    custodians: Custodians
    patience_seconds: float = PATIENCE_SECONDS
    elapsed: Callable[[], float] = time.monotonic

    @property
    def model_path(self) -> Path:
        """Where the sealed model goes."""
        return self.directory / "model.safetensors.age"

    @property
    def graph_path(self) -> Path:
        """Where the sealed graph goes, if a worker seals one."""
        return self.directory / "graph.pt2.age"

    def place(self, party: str) -> MirrorPlace:
        """Returns where a party's node keeps its state."""
        return place_of(self.custodians.plan, party, self.directory)

    def heads(self) -> list[Envelope]:
        """Returns what every party's register says of the log now, signed."""
        plan, found = self.custodians.plan, []
        for party in plan.party:
            with self.custodians.register(party.name) as register:
                if register.known_mark(plan.run_id) is None:
                    continue
                head = head_of_run(register, plan.run_id)
            line = sign_head(head, key=self.custodians.federation.keys[party.name])
            found.append(parse_envelope(line.rstrip()))
        return found

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

    def node(self, party: str, *, clock: HandClock | None = None) -> Node:
        """Returns a fresh node of a party, which nobody warranted yet."""
        plan = self.custodians.plan
        node = self.custodians.federation.node(
            party, clock=clock or self.custodians.clock
        )
        return replace(
            node, plan=plan, plan_hash=plan_hash(plan), warrant=HeldWarrant()
        )

    def nodes(self) -> dict[str, Node]:
        """Returns a fresh node of every party."""
        return {p.name: self.node(p.name) for p in self.custodians.plan.party}

    async def serve(
        self,
        node: Node,
        task: Task,
        *,
        custodian: Custodian | None = None,
        former: MirrorPlace | None = None,
    ) -> Outcome:
        """Runs a server; a failure is its log's last line, as in a node's process.

        Args:
            node: Its node.
            task: The task.
            custodian: Another line than that to the scene's own.
            former: Where the state under the plan before is kept.
        """
        settings = ServerSettings(
            enrolment=self.enrolment,
            training=self.training,
            patience_seconds=self.patience_seconds,
            model_path=self.model_path,
        )
        with open_journal(self.directory, party=node.party, as_json=False) as log:
            try:
                async with self._custodian(node, custodian, log) as line:
                    with self.audit(node, line) as audit:
                        return await serve(
                            node,
                            task,
                            custodian=line,
                            settings=settings,
                            audit=audit,
                            mirror=self.place(node.party),
                            former=former,
                            log=log,
                            elapsed=self.elapsed,
                        )
            except CloisterError as error:
                log.error("failed", **error_object(error))  # noqa: TRY400
                raise

    async def work(
        self,
        node: Node,
        task: Task,
        source: DataSource,
        *,
        custodian: Custodian | None = None,
        former: MirrorPlace | None = None,
    ) -> None:
        """Runs a worker; a failure is its log's last line."""
        settings = WorkerSettings(
            enrolment=self.enrolment,
            training=self.training,
            patience_seconds=self.patience_seconds,
            graph_path=self.graph_path,
        )
        with open_journal(self.directory, party=node.party, as_json=False) as log:
            try:
                async with self._custodian(node, custodian, log) as line:
                    await work(
                        node,
                        task,
                        source=source,
                        custodian=line,
                        settings=settings,
                        mirror=self.place(node.party),
                        former=former,
                        log=log,
                        elapsed=self.elapsed,
                    )
            except CloisterError as error:
                log.error("failed", **error_object(error))  # noqa: TRY400
                raise

    def audit(self, node: Node, custodian: Custodian) -> AuditLog:
        """Opens the run's audit log, as a server's process does."""
        return open_log_of(
            node,
            self.directory,
            federation=self.custodians.federation,
            known=custodian.mark,
        )

    @asynccontextmanager
    async def _custodian(
        self, node: Node, custodian: Custodian | None, log: FilteringBoundLogger
    ) -> AsyncIterator[Custodian]:
        if custodian is not None:
            yield custodian
            return
        async with (
            self.custodians.office(node.party) as office,
            office.line(node, log=log) as line,
        ):
            yield line


def place_of(plan: Plan, party: str, directory: Path) -> MirrorPlace:
    """Returns where a party's node keeps its state: beside a run directory."""
    digest = plan_hash(plan)
    path = directory.with_name(f"{directory.name}-state") / (
        f"{party}.{digest.hex()[:16]}.mirror"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    return MirrorPlace(
        path=path,
        key=Secret(hashlib.sha256(digest + party.encode()).digest()),
        subject=Subject(
            run_id=plan.run_id,
            plan_hash=digest,
            role=plan.find_party(party).role,
            party=party,
        ),
    )


def make_scene(
    directory: Path,
    federation: Federation,
    *,
    plan: Plan | None = None,
    clock: HandClock | None = None,
    warrant_life: timedelta = WARRANT_LIFE,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Scene:
    """Returns a scene at two free addresses.

    Args:
        directory: The run directory; the custodians' one lies beside it.
        federation: Whose run it is.
        plan: Another plan than the federation's.
        clock: Everybody's clock.
        warrant_life: How long everybody's warrants last.
        patience_seconds: Everybody's patience.
    """
    enrolment, training = free_addresses(2)
    return Scene(
        directory=directory,
        enrolment=enrolment,
        training=training,
        custodians=Custodians(
            federation=federation,
            directory=directory.with_name(f"{directory.name}-custodians"),
            plan=plan or federation.plan,
            clock=clock or HandClock(),
            warrant_life=warrant_life,
        ),
        patience_seconds=patience_seconds,
    )


def task() -> Softmax:
    """Returns the plan's task."""
    return Softmax(FEATURES, CLASSES)


class Hooked(Softmax):
    """The plan's task, which has something done before some of its steps.

    Attributes:
        before: What is done in the learner's thread, by round.
    """

    def __init__(self, before: Mapping[int, Callable[[], None]]) -> None:
        super().__init__(FEATURES, CLASSES)
        self.before = before

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> SoftmaxLearner:
        before = self.before

        class Learner(SoftmaxLearner):
            @override
            def step(self, round_number: int, out: ModelBuffer) -> StepReport:
                before.get(round_number, lambda: None)()
                return super().step(round_number, out)

        return Learner(self, source, settings)


def sources(names: Iterable[str] = WORKERS) -> dict[str, DataSource]:
    """Returns every worker's data, disjoint and always the same."""
    return {
        name: clouds(seed=seed, features=FEATURES, classes=CLASSES)
        for seed, name in enumerate(names, 1)
    }


async def whole_run(
    scene: Scene,
    nodes: Mapping[str, Node] | None = None,
    tasks: Mapping[str, Task] | None = None,
    *,
    former: MirrorPlace | None = None,
) -> Outcome:
    """Runs all nodes to their end; returns the server's outcome.

    Args:
        scene: Where, and under which plan.
        nodes: The nodes; fresh ones unless given.
        tasks: Tasks that are not the plan's, by party.
        former: Where the server's state under the plan before is kept.

    Raises:
        ExceptionGroup: With the error of every node that failed.
    """
    nodes, tasks = nodes or scene.nodes(), tasks or {}
    data = sources(worker.name for worker in scene.custodians.plan.workers)
    outcome, *others = await asyncio.gather(
        scene.serve(
            nodes["aggregator"], tasks.get("aggregator", task()), former=former
        ),
        *(
            scene.work(nodes[name], tasks.get(name, task()), data[name])
            for name in data
        ),
        return_exceptions=True,
    )
    failed = [it for it in (outcome, *others) if isinstance(it, Exception)]
    if failed:
        raise ExceptionGroup("nodes failed", failed)
    assert isinstance(outcome, Outcome)
    return outcome
