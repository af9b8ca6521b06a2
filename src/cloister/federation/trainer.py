"""The task at work in a worker node, in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cloister.federation.countersigning import countersign_head
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import EvaluationReport, ModelHeader, UpdateHeader
from cloister.federation.task import Evaluation, Learner, LearnerSettings, Task
from cloister.federation.task_loading import task_code
from cloister.ratls.node import Node
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

    Attributes:
        model: Receives each round's model.
        out: Holds the update of the round.
    """

    def __init__(self, node: Node, task: Task, *, executor: ThreadPoolExecutor) -> None:
        self._node = node
        self._plan = node.plan
        self._task = task
        self._executor = executor
        self._learner: Learner | None = None

    async def prepare(self, source: DataSource) -> None:
        """Lays out the model and opens the data."""
        training = self._plan.training
        initial = await self._run(
            "making the model", lambda: self._task.initial_model(seed=training.seed)
        )
        self.model = initial
        self.out = ModelBuffer(initial.layout)
        settings = LearnerSettings(
            party=self._node.party,
            batch_size=training.batch_size,
            seed=training.seed,
            threads=training.threads,
            precision=training.precision,
        )
        self._learner = await self._run(
            "opening the data", lambda: self._task.learner(source, settings)
        )

    async def update(self, header: ModelHeader) -> UpdateHeader:
        """Computes the update of a round from the model just received."""
        learner = self._ready()
        await self._run("loading the model", lambda: learner.load(self.model))
        evaluation = None
        if header.evaluate:
            evaluation = _report(await self._run("evaluating", learner.evaluate))
        report = await self._run(
            "training", lambda: learner.step(header.round, self.out)
        )
        return UpdateHeader(
            round=header.round,
            layout=header.layout,
            examples=report.examples,
            loss_sum=report.loss_sum,
            countersignature=countersign_head(self._node, header),
            evaluation=evaluation,
        )

    async def evaluate(self) -> EvaluationReport:
        """Evaluates the model just received."""
        learner = self._ready()
        await self._run("loading the model", lambda: learner.load(self.model))
        return _report(await self._run("evaluating", learner.evaluate))

    def _ready(self) -> Learner:
        if self._learner is None:
            raise RuntimeError("prepare first")
        return self._learner

    async def _run(self, doing: str, step: Callable[[], Result]) -> Result:
        plan = self._plan

        def guarded() -> Result:
            with task_code(plan.task.file, doing, simulated=plan.simulated):
                return step()

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, guarded)


def _report(evaluation: Evaluation) -> EvaluationReport:
    return EvaluationReport(examples=evaluation.examples, sums=dict(evaluation.sums))
