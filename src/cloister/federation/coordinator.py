"""Carries a run from round to round: the server's state, without any network.

The coordinator owns the model. Handlers bring it updates and wait for the model it
publishes next; it knows no bytes on a wire and no peer, only party names that the
admission table has vouched for.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ConfigError, ProtocolError
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import EvaluationReport, ModelHeader, UpdateHeader
from cloister.federation.rounds import (
    Round,
    RoundRules,
    check_evaluation,
    mean_metrics,
)
from cloister.federation.strategies.schedules import LearningRate
from cloister.federation.strategies.sgd import Sgd
from cloister.federation.transfer import chunks_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What the plan fixes about the run.

    Attributes:
        parties: The workers, in plan order.
        rounds: Rounds of training.
        evaluate_every: The model is evaluated after every so many rounds.
        examples: Examples a worker uses in one step.
        optimizer: The server's optimiser.
        learning_rate: Its schedule.
    """

    parties: tuple[str, ...]
    rounds: int
    evaluate_every: int
    examples: int
    optimizer: Sgd
    learning_rate: LearningRate


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A model as it is sent: the same bytes to every worker."""

    header: ModelHeader
    chunks: tuple[bytes, ...]


@dataclass(slots=True)
class Traffic:
    """Payload bytes since the run began, as the server sees them."""

    received: int = 0
    sent: int = 0


class Coordinator:
    """Runs the rounds of one plan.

    Args:
        course: What the plan fixes.
        model: The model training starts from; belongs to the coordinator.
        log: Receives one line a round, with aggregates only.
    """

    def __init__(
        self, course: Course, model: ModelBuffer, *, log: FilteringBoundLogger
    ) -> None:
        self._course = course
        self._log = log
        self._digest = model.layout.digest()
        self._velocity = course.optimizer.initial()
        self._rules = RoundRules(
            parties=course.parties, layout=model.layout, examples=course.examples
        )
        self._joined: set[str] = set()
        self._finals: dict[str, EvaluationReport] = {}
        self._round: Round | None = None
        self._failure: CloisterError | None = None
        self._published: Published | None = None
        self._changed = asyncio.Condition()
        self._touched = time.monotonic()
        self._round_began = time.monotonic()
        self.model = model
        self.traffic = Traffic()
        self.metrics: dict[str, float] | None = None

    def touch(self) -> None:
        """Notes that something arrived; the run is alive."""
        self._touched = time.monotonic()

    async def join(self, party: str, layout: str) -> Published:
        """Notes a worker's arrival; returns the current model when all have come.

        Raises:
            ProtocolError: If the worker's task lays its model out differently.
        """
        self._check_layout(party, layout)
        self.touch()
        async with self._changed:
            self._joined.add(party)
            if self._published is None and not self._absent():
                self._publish(1)
            self._changed.notify_all()
            current = self._round
        # A node that comes back after its party's update was counted trains next round.
        counted = current is not None and party not in current.missing
        return await self.next_model(
            after=current.number if current is not None and counted else 0
        )

    async def next_model(self, *, after: int) -> Published:
        """Waits for the model of a round later than `after` and returns it."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._failure is not None or self._is_past(after)
            )
            if self._failure is not None:
                raise self._failure
            if self._published is None:
                raise RuntimeError("woken without a model")
            return self._published

    async def fail(self, error: CloisterError) -> None:
        """Ends the run; every waiting worker is told why."""
        async with self._changed:
            self._failure = error
            self._changed.notify_all()

    def check_header(self, party: str, header: UpdateHeader) -> None:
        """Refuses an update that cannot count, before its chunks are read.

        Raises:
            ProtocolError: If it cannot.
        """
        self._current().check_header(party, header)

    async def count(
        self, party: str, header: UpdateHeader, update: ModelBuffer
    ) -> None:
        """Counts a whole update; the last one of a round completes it.

        Raises:
            ProtocolError: If the update does not count.
        """
        self.touch()
        async with self._changed:
            current = self._current()
            current.count(party, header, update)
            if not current.missing:
                self._complete(current)
            self._changed.notify_all()

    async def finish(self, party: str, report: EvaluationReport) -> None:
        """Takes a worker's report on the final model.

        Raises:
            ProtocolError: If training is not over or the report does not count.
        """
        self.touch()
        async with self._changed:
            check_evaluation(party, report, others=self._finals.values())
            if self._published is None or not self._published.header.final:
                raise ProtocolError(
                    f"{party!r} finishes before training is over",
                    code="finish-early",
                    expected="an update",
                )
            self._finals.setdefault(party, report)
            if set(self._finals) == set(self._course.parties):
                self.metrics = mean_metrics(
                    [self._finals[p] for p in self._course.parties]
                )
            self._changed.notify_all()

    async def run(self, *, patience_seconds: float) -> dict[str, float]:
        """Waits until all is done; returns the final model's metrics.

        Args:
            patience_seconds: Longest silence before the run is given up.

        Raises:
            ProtocolError: If nothing arrives for that long, naming who is missing.
            ConfigError: If the model diverged.
        """
        while True:
            async with self._changed:
                if self._failure is not None:
                    raise self._failure
                if self.metrics is not None:
                    return self.metrics
                quiet = time.monotonic() - self._touched
                try:
                    async with asyncio.timeout(max(0.0, patience_seconds - quiet)):
                        await self._changed.wait()
                except TimeoutError:
                    if time.monotonic() - self._touched >= patience_seconds:
                        raise self._given_up(patience_seconds) from None

    def _given_up(self, patience_seconds: float) -> ProtocolError:
        if self._published is None:
            stage, missing = "before training began", self._absent()
        elif self._published.header.final:
            stage = "after the last round"
            missing = [p for p in self._course.parties if p not in self._finals]
        else:
            stage = f"in round {self._current().number}"
            missing = list(self._current().missing)
        return ProtocolError(
            f"gave up waiting {stage}",
            code="worker-missing",
            expected=f"{', '.join(missing)} within {patience_seconds:g} s",
            got="nothing",
            remedy="Start the missing workers; their logs say what stopped them."
            " The wait is patience_seconds in the server's site.toml.",
        )

    def _is_past(self, number: int) -> bool:
        return self._published is not None and self._published.header.round > number

    def _absent(self) -> list[str]:
        return [p for p in self._course.parties if p not in self._joined]

    def _current(self) -> Round:
        if self._round is None:
            raise ProtocolError(
                "no round is running",
                code="no-round",
                expected="an update between the first model and the last",
            )
        return self._round

    def _check_layout(self, party: str, layout: str) -> None:
        if layout != self._digest:
            raise ProtocolError(
                f"the model of {party!r} is laid out differently",
                code="layout-differs",
                expected=self._digest,
                got=layout,
                remedy="Server and workers must run the same task with the same"
                " options.",
            )

    def _complete(self, current: Round) -> None:
        rate = self._course.learning_rate.at(current.number)
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            aggregate = current.aggregate()
            parameters, self._velocity = self._course.optimizer.update(
                self.model.parameters,
                self._velocity,
                gradient=aggregate.gradient,
                rate=rate,
            )
        if not (
            np.isfinite(parameters).all() and np.isfinite(aggregate.statistics).all()
        ):
            self._failure = _diverged(current.number)
            return
        self.model.parameters[:] = parameters
        self.model.statistics[:] = aggregate.statistics
        now = time.monotonic()
        self._log.info(
            "round",
            round=current.number,
            rounds=self._course.rounds,
            loss=aggregate.loss,
            learning_rate=rate,
            parties=len(self._course.parties),
            bytes_received=self.traffic.received,
            bytes_sent=self.traffic.sent,
            seconds=round(now - self._round_began, 6),
        )
        if aggregate.metrics is not None:
            # The workers evaluated the model they received, before this round's step.
            self._log.info(
                "evaluation", round=current.number - 1, metrics=aggregate.metrics
            )
        self._round_began = now
        self._publish(current.number + 1)

    def _publish(self, number: int) -> None:
        course = self._course
        final = number > course.rounds
        evaluate = (
            not final and number > 1 and (number - 1) % course.evaluate_every == 0
        )
        self._round = None if final else Round(number, self._rules, evaluate=evaluate)
        self._published = Published(
            header=ModelHeader(
                round=number, layout=self._digest, evaluate=evaluate, final=final
            ),
            chunks=tuple(chunks_of(self.model)),
        )


def _diverged(round_number: int) -> ConfigError:
    return ConfigError(
        f"training diverged in round {round_number}",
        code="training-diverged",
        expected="finite parameters",
        got="NaN or infinity",
        remedy="Lower the plan's learning rate, or warm up longer.",
    )
