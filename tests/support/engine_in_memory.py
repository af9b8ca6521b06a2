"""The engine's arithmetic without its network: server and workers in one loop.

Learners, local steps, wire formats, sums, optimisers and draws are the very code that
nodes run. Left out are channels, attestation, the audit log, and who waits for whom:
everybody is there and nobody is late. `tests/convergence/test_engine_in_memory.py`
holds its bits equal to those of a run over sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.support.plan_tree import WORKERS, Tree, add_worker, plan_tree, put, toml_of

from cloister.federation.aggregation import ExactSum, OrderedSum
from cloister.federation.course import Course, course_of
from cloister.federation.layout import ModelBuffer
from cloister.federation.local_training import local_training
from cloister.federation.messages import EvaluationReport
from cloister.federation.model_state import Mean, ModelState
from cloister.federation.publisher import STEP_THREADS
from cloister.federation.rounds.cohort import draw
from cloister.federation.rounds.reports import mean_metrics
from cloister.federation.starting_model import Arrays, starting_model
from cloister.federation.strategies.strategy import Strategy
from cloister.federation.task import LearnerSettings, StepReport, Task
from cloister.federation.updates import ModelReceiver, Receiver, Update
from cloister.federation.wire_format import wire_format
from cloister.plan.plan import Plan, parse_plan
from cloister.storage.records import DataSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run led to.

    Attributes:
        model: The final model.
        metrics: Means over everybody's held-out examples, of the final model as the
            workers received it.
        losses: Mean training loss of each round.
        bytes_received: Sizes of all updates, as the server receives them.
        bytes_sent: Sizes of all models that it sent.
    """

    model: ModelBuffer
    metrics: Mapping[str, float]
    losses: tuple[float, ...]
    bytes_received: int
    bytes_sent: int

    @property
    def accuracy(self) -> float:
        """Share of held-out examples that are classified right."""
        return self.metrics["accuracy"]


class WorkerInMemory:
    """One worker: a model comes in as chunks, an update goes out as chunks.

    Args:
        plan: The plan.
        task: Its task.
        party: Whose worker it is.
        source: The party's data.
    """

    def __init__(
        self, plan: Plan, task: Task, *, party: str, source: DataSource
    ) -> None:
        training = plan.training
        self._model = task.initial_model(seed=training.seed)
        self._out = ModelBuffer(self._model.layout)
        self._wire = wire_format(
            training.wire, self._model.layout, workers=len(plan.workers)
        )
        self._learner = task.learner(
            source,
            LearnerSettings(
                party=party,
                batch_size=training.batch_size,
                seed=training.seed,
                threads=training.threads,
                precision=training.precision,
            ),
        )
        self._local = local_training(training, self._learner, self._model)

    def receive(self, chunks: list[bytes]) -> None:
        """Takes a model."""
        receiver = ModelReceiver(self._wire, self._model)
        for chunk in chunks:
            receiver.feed(chunk)
        receiver.finish()
        self._learner.load(self._model)

    def update(self, round_number: int) -> tuple[StepReport, list[bytes]]:
        """Returns the update of a round."""
        if self._local is None:
            report = self._learner.step(round_number, self._out)
        else:
            report = self._local.train(round_number, self._model, self._out)
        count = self._wire.chunk_count
        return report, [self._wire.encode(self._out, n) for n in range(count)]

    def evaluate(self) -> EvaluationReport:
        """Evaluates the model just received."""
        found = self._learner.evaluate()
        return EvaluationReport(examples=found.examples, sums=dict(found.sums))


class ServerInMemory:
    """The server: updates come in as chunks, models go out as chunks.

    Args:
        course: What the plan fixes.
        model: The model training starts from; belongs to the server.
    """

    def __init__(self, course: Course, model: ModelBuffer) -> None:
        self.model = model
        self._course = course
        self._wire = wire_format(course.wire, model.layout, workers=len(course.parties))
        self._state = ModelState(model, course.optimizer)
        self._total: OrderedSum | ExactSum = (
            OrderedSum(model.layout)
            if course.quorum is None
            else ExactSum(model.layout, parties=course.seats)
        )

    def publish(self) -> list[bytes]:
        """Returns the model."""
        return [self._wire.encode(self.model, n) for n in range(self._wire.chunk_count)]

    def receive(self, chunks: list[bytes]) -> Update:
        """Returns an update, every chunk of it checked."""
        receiver = Receiver(self._wire, limits=self._total.limits)
        for chunk in chunks:
            receiver.feed(chunk)
        return receiver.finish()

    def add(self, update: Update) -> None:
        """Adds an update to the sum of the round."""
        self._total.add(update)

    def step(self, round_number: int, last: Update) -> None:
        """Ends a round; its last update is read where it lies, as the server does."""
        mean: Mean = self._total.closing((last,))
        with ThreadPoolExecutor(STEP_THREADS) as threads:
            self._state.step(
                mean,
                rate=self._course.server_rate(round_number),
                round_number=round_number,
                threads=threads,
                count=STEP_THREADS,
            )
        self._total.reset()


def train(
    plan: Plan,
    task: Task,
    sources: Mapping[str, DataSource],
    *,
    strategy: Strategy | None = None,
    initial: Arrays | None = None,
) -> Trained:
    """Carries a plan's run to its end.

    Args:
        plan: The plan.
        task: Its task.
        sources: Each worker's data.
        strategy: The plan's own, if it has one.
        initial: The arrays to start from, if it names some.
    """
    course = course_of(plan, own_strategy=strategy)
    server = ServerInMemory(course, starting_model(plan, task, initial))
    workers = {
        party: WorkerInMemory(plan, task, party=party, source=sources[party])
        for party in course.parties
    }
    losses, received, sent = [], 0, 0
    for number in range(1, course.rounds + 1):
        seated = draw(
            course.parties, seats=course.seats, seed=course.seed, round_number=number
        )
        model = server.publish()
        reports = []
        for party in seated:
            workers[party].receive(model)
            sent += sum(map(len, model))
            report, chunks = workers[party].update(number)
            received += sum(map(len, chunks))
            reports.append(report)
            update = server.receive(chunks)
            if party == seated[-1]:
                server.step(number, update)
            else:
                server.add(update)
        losses.append(
            sum(r.loss_sum for r in reports) / sum(r.examples for r in reports)
        )
    model = server.publish()
    for worker in workers.values():
        worker.receive(model)
        sent += sum(map(len, model))
    return Trained(
        model=server.model,
        metrics=mean_metrics([worker.evaluate() for worker in workers.values()]),
        losses=tuple(losses),
        bytes_received=received,
        bytes_sent=sent,
    )


def plan_for(workers: int, training: Tree, **rounds: str | int) -> Plan:
    """Returns a plan of so many workers.

    Args:
        workers: How many.
        training: The whole section ``[training]``.
        rounds: What to say in ``[rounds]`` beside what the plan of the tests says.
    """
    tree = put(plan_tree(), ("training",), training)
    for number in range(len(WORKERS), workers):
        add_worker(tree, f"worker-{number}")
    for key, value in rounds.items():
        put(tree, ("rounds", key), value)
    return parse_plan(toml_of(tree))
