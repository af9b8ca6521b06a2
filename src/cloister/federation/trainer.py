"""The task at work in a worker node, in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

from cloister.errors import ConfigError
from cloister.federation.countersigning import countersign_head
from cloister.federation.layout import ModelBuffer
from cloister.federation.learner_memory import LearnerMemory
from cloister.federation.local_training import LocalSteps, local_training
from cloister.federation.messages import EvaluationReport, ModelHeader, UpdateHeader
from cloister.federation.task import (
    Evaluation,
    GraphLearner,
    Learner,
    LearnerSettings,
    StatefulLearner,
    StepReport,
    Task,
)
from cloister.federation.task_loading import task_code
from cloister.federation.wire_format import WireFormat, wire_format
from cloister.ratls.node import Node
from cloister.storage.mirror.subject import MirrorPlace
from cloister.storage.records import DataSource

Result = TypeVar("Result")


class Trainer:
    """The task at work.

    Args:
        node: Whose node it is.
        task: The plan's task.
        executor: One thread for all of the task's work: frameworks keep state by
            thread, and a thread made for every step costs more than the step in an
            enclave.
        mirror: Where a learner's own state is kept; None where the node has no state
            key.
        former: Where it was kept under the plan before, of an amended plan; None
            where the plan has no predecessor.

    Attributes:
        model: Receives each round's model.
        out: Holds the update of the round.
        wire: How both travel.
    """

    def __init__(
        self,
        node: Node,
        task: Task,
        *,
        executor: ThreadPoolExecutor,
        mirror: MirrorPlace | None,
        former: MirrorPlace | None,
    ) -> None:
        self._node = node
        self._plan = node.plan
        self._task = task
        self._executor = executor
        self._mirror = mirror
        self._former = former
        self._learner: Learner | None = None
        self._memory: LearnerMemory | None = None
        self._local: LocalSteps | None = None

    async def prepare(self, source: DataSource) -> None:
        """Lays out the model, opens the data, and finds what the learner kept.

        Raises:
            ConfigError: If the learner keeps something, and this node has no state key
                (``state-key-missing``).
            CloisterError: If the task, its data or its kept states cannot be used.
        """
        training = self._plan.training

        def make() -> ModelBuffer:
            with self._guard("making the model"):
                return self._task.initial_model(seed=training.seed)

        self.model = await self._run(make)
        self.out = ModelBuffer(self.model.layout)
        self.wire: WireFormat = wire_format(
            training.wire, self.model.layout, workers=len(self._plan.workers)
        )
        settings = LearnerSettings(
            party=self._node.party,
            batch_size=training.batch_size,
            seed=training.seed,
            threads=training.threads,
            precision=training.precision,
        )

        def open_data() -> Learner:
            with self._guard("opening the data"):
                return self._task.learner(source, settings)

        learner = self._learner = await self._run(open_data)

        def begin_local() -> LocalSteps | None:
            with self._guard("making the optimiser"):
                return local_training(training, learner, self.model)

        self._local = await self._run(begin_local)
        if isinstance(learner, StatefulLearner):
            self._memory = await self._run(lambda: self._remember(learner))

    def close(self) -> None:
        """Gives back what `prepare` opened."""
        if self._memory is not None:
            self._memory.close()

    async def update(self, header: ModelHeader) -> UpdateHeader:
        """Computes the update of a round from the model just received."""
        learner = self._ready()

        # All in one turn of the thread: each costs as much as a small step's overhead.
        def work() -> tuple[EvaluationReport | None, StepReport]:
            self._load(learner, header.round)
            evaluation = self._evaluate(learner) if header.evaluate else None
            report = self._train(learner, header.round)
            # Before the update leaves: a server that has it may not ask again.
            if self._memory is not None:
                self._memory.end(header.round)
            return evaluation, report

        evaluation, report = await self._run(work)
        return UpdateHeader(
            round=header.round,
            layout=header.layout,
            examples=report.examples,
            loss_sum=report.loss_sum,
            countersignature=countersign_head(self._node, header),
            evaluation=evaluation,
        )

    async def evaluate(self, header: ModelHeader) -> EvaluationReport:
        """Evaluates the model just received."""
        learner = self._ready()

        def work() -> EvaluationReport:
            self._load(learner, header.round)
            return self._evaluate(learner)

        return await self._run(work)

    async def graph(self) -> bytes:
        """Returns the network with the values of the model just received.

        Raises:
            ConfigError: If the task or its framework cannot write it down
                (``task-graph``).
        """
        learner = self._ready()

        def work() -> bytes:
            with self._guard("loading the model"):
                learner.load(self.model)
            with self._guard("writing the network down"):
                if isinstance(learner, GraphLearner):
                    return learner.graph()
            raise ConfigError(
                f"the task in {self._plan.task.file} writes no graph",
                code="task-graph",
                expected="a learner with the method graph",
                got=type(learner).__name__,
                remedy="Leave [model] graph out, or give the task's learner graph().",
            )

        return await self._run(work)

    def _ready(self) -> Learner:
        if self._learner is None:
            raise RuntimeError("prepare first")
        return self._learner

    def _load(self, learner: Learner, round_number: int) -> None:
        """Has the learner as it begins a round: in its own state, with the model."""
        if self._memory is not None:
            self._memory.begin(round_number)
        with self._guard("loading the model"):
            learner.load(self.model)

    def _evaluate(self, learner: Learner) -> EvaluationReport:
        with self._guard("evaluating"):
            return _report(learner.evaluate())

    def _train(self, learner: Learner, round_number: int) -> StepReport:
        with self._guard("training"):
            if self._local is None:
                return learner.step(round_number, self.out)
            return self._local.train(round_number, self.model, self.out)

    def _remember(self, learner: StatefulLearner) -> LearnerMemory:
        if self._mirror is None:
            raise ConfigError(
                f"the task in {self._plan.task.file} keeps a state, and this node has"
                " no key to keep it under",
                code="state-key-missing",
                expected="state_share of at least two parties in the plan, or a"
                " platform that seals",
                got="a worker without a state key",
                remedy="Give the parties a state_share, or let the task's learner do"
                " without state() and restore().",
            )
        return LearnerMemory(
            learner,
            self._mirror,
            former=self._former,
            plan=self._plan,
            guard=self._guard,
        )

    def _guard(self, doing: str) -> AbstractContextManager[None]:
        return task_code(self._plan.task.file, doing, simulated=self._plan.simulated)

    async def _run(self, work: Callable[[], Result]) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, work)


def _report(evaluation: Evaluation) -> EvaluationReport:
    return EvaluationReport(examples=evaluation.examples, sums=dict(evaluation.sums))
