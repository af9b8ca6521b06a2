"""A coordinator and what a test does to it; at the end nothing of it is left over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Self

import numpy as np
from tests.support.kept_in_memory import KeptInMemory, KnownAtOnce
from tests.support.recorded_log import RecordedLog
from tests.support.run_audit import RecordedRounds, participant
from tests.support.training_calls import model_in

from cloister.errors import ProtocolError, StorageError
from cloister.federation.coordinator import Coordinator
from cloister.federation.course import Course
from cloister.federation.layout import Layout, ModelBuffer, layout_of
from cloister.federation.messages import EvaluationReport, ModelHeader, UpdateHeader
from cloister.federation.model_state import ModelState
from cloister.federation.published import Published
from cloister.federation.publisher import ARITHMETIC_THREADS
from cloister.federation.state import Witness
from cloister.federation.strategies.optimizers import Sgd
from cloister.federation.strategies.schedules import Constant, LearningRate
from cloister.federation.updates import Receiver, Update
from cloister.federation.value_limits import FINITE, ValueLimits
from cloister.federation.wire_format import wire_format

LAYOUT = layout_of({"w": np.zeros(3)}, {"mean": np.zeros(1)})
# Of three spans and as many chunks, the last of which is short.
WIDE = layout_of({"w": np.zeros(300_000)}, {"mean": np.zeros(1)})
PARTIES = ("alice", "bob")
HOUR = 3600.0


def course(
    *,
    parties: tuple[str, ...] = PARTIES,
    rounds: int = 3,
    evaluate_every: int = 50,
    rate: float = 1.0,
) -> Course:
    """Returns a course in which everybody contributes to every round."""
    return Course(
        run_id="blobs/a",
        parties=parties,
        seats=len(parties),
        quorum=None,
        deadline_seconds=None,
        rounds=rounds,
        evaluate_every=evaluate_every,
        examples=4,
        optimizer=Sgd(),
        rate=LearningRate(peak=rate, schedule=Constant()),
        seed=7,
        wire="float32",
    )


def quorum_course(
    parties: tuple[str, ...],
    *,
    quorum: int = 2,
    deadline_seconds: float = HOUR,
    rounds: int = 3,
) -> Course:
    """Returns a course whose rounds may end without some of the parties."""
    return replace(
        course(parties=parties, rounds=rounds),
        quorum=quorum,
        deadline_seconds=deadline_seconds,
    )


def header(number: int, evaluation: EvaluationReport | None = None) -> UpdateHeader:
    """Returns the header of an update for `LAYOUT`."""
    return UpdateHeader(
        round=number,
        layout=LAYOUT.digest(),
        examples=4,
        loss_sum=2.0,
        countersignature=b"signed",
        evaluation=evaluation,
    )


def update_of(model: ModelBuffer, *, limits: ValueLimits = FINITE) -> Update:
    """Returns a model's values as an update that has come whole."""
    wire = wire_format("float32", model.layout, workers=2)
    receiver = Receiver(wire, limits=limits)
    for number in range(wire.chunk_count):
        receiver.feed(wire.encode(model, number))
    return receiver.finish()


def filled(value: float, layout: Layout = LAYOUT) -> ModelBuffer:
    """Returns a model all of whose values are the same."""
    made = ModelBuffer(layout)
    made.parameters[:] = value
    made.statistics[:] = value
    return made


def report(examples: int, **sums: float) -> EvaluationReport:
    """Returns an evaluation."""
    return EvaluationReport(examples=examples, sums=sums)


async def bytes_of(model: Published) -> bytes:
    """Returns all that a worker gets of a model."""
    return model_in([model.message(n) for n in range(model.message_count)])[1]


class Story:
    """A coordinator, open while the context lasts.

    Args:
        plan: Its course.
        layout: Of its model.
        audit: Records its rounds.
        completed: Rounds completed before it.
        chosen: Whom a server before it chose for its first round.
        witness: Its party; one that knows at once, if none is given.
    """

    def __init__(
        self,
        plan: Course | None = None,
        *,
        layout: Layout = LAYOUT,
        audit: RecordedRounds | None = None,
        completed: int = 0,
        chosen: tuple[str, ...] = (),
        witness: Witness | None = None,
    ) -> None:
        self.course = plan or course()
        self.layout = layout
        self.log = RecordedLog()
        self.audit = audit or RecordedRounds()
        self.now = 0.0
        self.threads = ThreadPoolExecutor(ARITHMETIC_THREADS)
        self.state = ModelState(ModelBuffer(layout), self.course.optimizer)
        self.keeper = KeptInMemory(self.state, completed=completed, chosen=chosen)
        self.witness = witness or KnownAtOnce()
        self.coordinator = Coordinator(
            self.course,
            self.state,
            keeper=self.keeper,
            witness=self.witness,
            audit=self.audit,
            threads=self.threads,
            log=self.log.logger(),
            elapsed=lambda: self.now,
        )
        self.told: list[ModelHeader] = []
        self.coordinator.subscribe(self.told.append)

    async def __aenter__(self) -> Self:
        self._before = asyncio.all_tasks()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        del rest
        await self.coordinator.fail(ProtocolError("the story is over", code="over"))
        with contextlib.suppress(StorageError):  # the medium of some is full
            await self.coordinator.rest()
        self.threads.shutdown()
        if kind is not None:
            return
        for _ in range(10):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == self._before
        deadline = self.coordinator._deadline
        assert deadline is None or deadline.cancelled()
        assert self.coordinator._machine.waiting == ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Who has not joined, contributed or reported, as the machine sees it."""
        return self.coordinator._machine.missing

    def call(self, party: str) -> asyncio.Task[Published]:
        """Has a party ask for the model that is out."""
        return asyncio.ensure_future(self.coordinator.join(party, self.layout.digest()))

    async def join_all(self) -> Published:
        """Has all parties come; returns the first model."""
        first, *others = await asyncio.gather(*map(self.call, self.course.parties))
        assert all(model is first for model in others)
        return first

    async def count(
        self,
        party: str,
        number: int,
        value: float | ModelBuffer = 1.0,
        *,
        evaluation: EvaluationReport | None = None,
    ) -> None:
        """Brings a party's update, and ends its call as soon as it counts."""
        with self.coordinator.waiting(party):
            await self._bring(party, number, value, evaluation)

    async def contribute(
        self, party: str, number: int, value: float | ModelBuffer = 1.0
    ) -> Published:
        """Brings a party's update; returns the model that answers the call."""
        with self.coordinator.waiting(party):
            await self._bring(party, number, value, None)
            return await self.coordinator.next_model(party, after=number)

    async def next_model(self, party: str, *, after: int) -> Published:
        """Returns what a call of the party is answered with."""
        with self.coordinator.waiting(party):
            return await self.coordinator.next_model(party, after=after)

    async def whole_round(self, number: int) -> Published:
        """Has everybody contribute; returns the next model."""
        models = await asyncio.gather(
            *(self.contribute(party, number) for party in self.course.parties)
        )
        return models[0]

    async def closed(self) -> None:
        """Waits until a round that is ending has ended."""
        while self.coordinator._moving is not None:
            await asyncio.wait((self.coordinator._moving,))

    async def _bring(
        self,
        party: str,
        number: int,
        value: float | ModelBuffer,
        evaluation: EvaluationReport | None,
    ) -> None:
        said = replace_layout(header(number, evaluation), self.layout)
        self.coordinator.check_header(party, said)
        intake = self.coordinator.intake(party, said)
        async with intake.staging.place(party) as place:
            model = (
                value if isinstance(value, ModelBuffer) else filled(value, self.layout)
            )
            self.coordinator.count(
                participant(party),
                said,
                update=update_of(model, limits=intake.limits),
                place=place,
            )


def replace_layout(said: UpdateHeader, layout: Layout) -> UpdateHeader:
    """Returns the header for an update of another layout."""
    return UpdateHeader(
        round=said.round,
        layout=layout.digest(),
        examples=said.examples,
        loss_sum=said.loss_sum,
        countersignature=said.countersignature,
        evaluation=said.evaluation,
    )


async def turns(condition: Callable[[], bool], count: int = 1000) -> None:
    """Lets everybody else work until something is so, which must be soon."""
    for _ in range(count):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not happen")
