"""A crowd of light workers in this process that come and go while a run goes on.

A node that leaves is cut off wherever it is: before its update, in the middle of one,
or while it waits. Its party comes again a moment later with another node. Some nodes
are so slow that their round is over before they have computed. Every node keeps a book
of what it computed and of what it was told.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from examples.softmax.task import Softmax, SoftmaxLearner
from tests.support.plan_tree import CLASSES, FEATURES, Tree, put
from tests.support.recorded_log import RecordedLog
from tests.support.whole_run import Scene, sources
from typing_extensions import override

from cloister.errors import CloisterError
from cloister.federation.layout import ModelBuffer
from cloister.federation.server import Outcome
from cloister.federation.task import LearnerSettings, StepReport
from cloister.federation.worker import WorkerSettings, work
from cloister.ratls.mark import Mark
from cloister.storage.records import DataSource

# A node that leaves does so within this time of a round's beginning, and its party
# comes again within as much: a round takes about so long.
_LEAVES_WITHIN, _COMES_WITHIN = 0.1, 0.15
# Of those who came last; the server is gone by then.
_FAREWELL_SECONDS = 5.0


def churned(
    tree: Tree, *, rounds: int, seats: int, quorum: int, deadline_seconds: int
) -> Tree:
    """Returns the plan of the tests for a crowd: of all workers some have a seat."""
    changes: dict[tuple[str, str], object] = {
        ("training", "mode"): "fedavg",
        ("training", "rounds"): rounds,
        ("training", "local_steps"): 1,
        ("training", "local_optimizer"): {"learning_rate": 0.1},
        ("training", "optimizer"): {"name": "sgd", "learning_rate": 1.0},
        ("rounds", "sample"): seats,
        ("rounds", "quorum"): quorum,
        ("rounds", "deadline_seconds"): deadline_seconds,
        ("rounds", "evaluate_every"): rounds,
    }
    for place, value in changes.items():
        tree = put(tree, place, value)  # type: ignore[arg-type]
    return tree


@dataclass(slots=True, kw_only=True)
class Life:
    """One node of a party, from its coming to its end.

    Attributes:
        party: The party.
        tls_key_sha256: Which node.
        computed: The rounds that it computed an update for.
        log: What it said.
        left: Whether it was made to leave.
        error: What it failed of.
    """

    party: str
    tls_key_sha256: str
    computed: list[int] = field(default_factory=list)
    log: RecordedLog = field(default_factory=RecordedLog)
    left: bool = False
    error: CloisterError | None = None

    def rounds(self, event: str) -> list[int]:
        """Returns the rounds of which it said so."""
        return [int(str(it["round"])) for it in self.log.named(event)]


class Memory:
    """A party's custodian that only remembers; it outlives the party's nodes."""

    def __init__(self) -> None:
        self.mark: Mark | None = None

    async def renew(self) -> None:
        """Does nothing: warrants last longer than the run."""

    async def deposit(self, mark: Mark) -> None:
        """Remembers a mark."""
        self.mark = mark


class _Task(Softmax):
    """The plan's task; tells of each update before it is computed."""

    def __init__(self, before: Callable[[int], None]) -> None:
        super().__init__(FEATURES, CLASSES)
        self._before = before

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> SoftmaxLearner:
        before = self._before

        class Learner(SoftmaxLearner):
            @override
            def step(self, round_number: int, out: ModelBuffer) -> StepReport:
                before(round_number)  # one local step: its number is the round's
                return super().step(round_number, out)

        return Learner(self, source, settings)


class Crowd:
    """The workers of a run.

    Args:
        scene: The run.
        leaving: How many leave, and come, in every round.
        slow_every: In every so many rounds one node is too slow.
        seed: Who leaves, who is slow, and when.

    Attributes:
        lives: Every node that there was.
    """

    def __init__(
        self, scene: Scene, *, leaving: int, slow_every: int, seed: int
    ) -> None:
        plan = scene.custodians.plan
        self.lives: list[Life] = []
        self._scene = scene
        self._parties = [party.name for party in plan.workers]
        self._rounds = plan.training.rounds
        self._leaving = leaving
        self._slow_every = slow_every
        self._generator = np.random.default_rng(seed)
        self._sources = sources(self._parties)
        self._memories = {party: Memory() for party in self._parties}
        self._epochs = dict.fromkeys(self._parties, 0)
        self._present: dict[str, tuple[Life, asyncio.Task[None]]] = {}
        self._all: set[asyncio.Task[None]] = set()
        self._slow: str | None = None
        # Set when the round after has begun: who waits for that is late for certain.
        self._begun = [threading.Event() for _ in range(self._rounds + 2)]
        self._round = 0
        self._loop = asyncio.get_running_loop()

    async def run(self) -> Outcome:
        """Returns the server's outcome, when everybody has ended."""
        server = self._scene.node("aggregator")
        serving = asyncio.create_task(
            self._scene.serve(server, Softmax(FEATURES, CLASSES))
        )
        for party in self._parties:
            self._come(party)
        try:
            return await serving
        finally:
            serving.cancel()
            self._round = self._rounds  # nobody leaves or comes any more
            for begun in self._begun:
                begun.set()
            if self._all:
                await asyncio.wait(self._all, timeout=_FAREWELL_SECONDS)
            for task in self._all:
                task.cancel()
            await asyncio.gather(*self._all, return_exceptions=True)

    def _come(self, party: str) -> None:
        self._epochs[party] += 1
        node = self._scene.custodians.federation.node(
            party, epoch=self._epochs[party], clock=self._scene.custodians.clock
        )
        key = hashlib.sha256(node.identity.tls_spki).hexdigest()
        life = Life(party=party, tls_key_sha256=key)
        self.lives.append(life)

        async def live() -> None:
            settings = WorkerSettings(
                enrolment=self._scene.enrolment,
                training=self._scene.training,
                patience_seconds=self._scene.patience_seconds,
                graph_path=self._scene.graph_path,
            )
            try:
                await work(
                    node,
                    _Task(lambda number: self._computes(life, number)),
                    source=self._sources[party],
                    custodian=self._memories[party],
                    settings=settings,
                    mirror=None,
                    former=None,
                    log=life.log.logger(),
                )
            except CloisterError as error:
                life.error = error

        task = asyncio.create_task(live())
        self._present[party] = (life, task)
        self._all.add(task)
        task.add_done_callback(self._all.discard)

    def _computes(self, life: Life, number: int) -> None:
        """Notes an update; in the learner's thread."""
        self._loop.call_soon_threadsafe(self._see, number)
        life.computed.append(number)
        if life.party == self._slow and number < self._rounds:
            self._begun[number + 1].wait()
            self._slow = None

    def _see(self, number: int) -> None:
        """Has some leave in a round that nobody has seen before."""
        if number <= self._round:
            return
        self._round = number
        for begun in self._begun[: number + 1]:
            begun.set()
        if number == self._rounds:
            return
        if number % self._slow_every == 0 and self._slow is None:
            self._slow = str(self._generator.choice(self._parties))
        there = sorted(self._present)
        for place in self._generator.choice(len(there), self._leaving, replace=False):
            delay = self._generator.uniform(0, _LEAVES_WITHIN)
            self._loop.call_later(delay, self._leave, there[int(place)])

    def _leave(self, party: str) -> None:
        # Cut off while its thread waits, it would hold up everybody in this process.
        if party == self._slow or party not in self._present:
            return
        life, task = self._present.pop(party)
        life.left = True
        task.cancel()
        delay = self._generator.uniform(0, _COMES_WITHIN)
        self._loop.call_later(delay, self._come, party)
