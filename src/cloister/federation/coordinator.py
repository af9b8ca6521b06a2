"""Carries a run from round to round: the server's state, without any network.

The coordinator owns the model. Handlers bring it updates and wait for the model it
publishes next; it knows no bytes on a wire and no peer, only party names that the
admission table has vouched for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import numpy as np
from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ConfigError, ProtocolError, StorageError
from cloister.federation.audit import RoundAudit
from cloister.federation.audit_records import Participant
from cloister.federation.course import Course
from cloister.federation.finals import Finals
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import EvaluationReport, ModelHeader, UpdateHeader
from cloister.federation.published import Ending, Published, Traffic
from cloister.federation.rounds import Round, RoundRules, check_evaluation
from cloister.federation.state import MarkTimer, state_digest
from cloister.federation.transfer import chunks_of

# How long a run that has failed waits for workers to be told.
_FAREWELL_SECONDS = 1.0


class Coordinator:
    """Runs the rounds of one plan.

    Args:
        course: What the plan fixes.
        model: The model training starts from; belongs to the coordinator.
        audit: Receives every round; its head goes out with every model.
        log: Receives one line a round, with aggregates only.
        elapsed: A counter of seconds; it says when a mark is due.
    """

    def __init__(
        self,
        course: Course,
        model: ModelBuffer,
        *,
        audit: RoundAudit,
        log: FilteringBoundLogger,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._course = course
        self._audit = audit
        self._log = log
        self._marks = MarkTimer(elapsed)
        self._told: list[Callable[[ModelHeader], None]] = []
        self._digest = model.layout.digest()
        self._velocity = course.optimizer.initial()
        self._rules = RoundRules(
            parties=course.parties, layout=model.layout, examples=course.examples
        )
        self._joined: set[str] = set()
        self._finals = Finals(course.parties)
        self._informed: set[str] = set()
        self._informs = asyncio.Event()
        self._silent: set[str] = set()
        self._differed = False
        self._round: Round | None = None
        self._failure: CloisterError | None = None
        self._published: Published | None = None
        self._changed = asyncio.Condition()
        self._touched = time.monotonic()
        self._round_began = time.monotonic()
        self.model = model
        self.traffic = Traffic()
        self.metrics: dict[str, float] | None = None

    @property
    def failure(self) -> CloisterError | None:
        """Why the run has failed; None while it has not."""
        return self._failure

    @property
    def ending(self) -> Ending:
        """How training ended; it must have."""
        if self.metrics is None or self._published is None:
            raise RuntimeError("training is not over")
        return Ending(model=self._published.header, reports=self._finals.participants)

    def subscribe(self, told: Callable[[ModelHeader], None]) -> None:
        """Has `told` called with the header of every model, as it is published."""
        self._told.append(told)

    def touch(self) -> None:
        """Notes that something arrived; the run is alive."""
        self._touched = time.monotonic()

    def initial_state(self) -> bytes:
        """Returns the digest of the state before the first round."""
        return self._state_after(0)

    async def join(self, party: str, layout: str) -> Published:
        """Notes a worker's arrival; returns the current model when all have come.

        Raises:
            ProtocolError: If the worker's task lays its model out differently.
        """
        self._check_layout(party, layout)
        self.touch()
        async with self._changed:
            if party not in self._joined:
                self._joined.add(party)
                self._log.info("worker-joined", peer=party, missing=self._absent())
            if self._published is None and not self._absent():
                self._publish(1)
            self._changed.notify_all()
            current = self._round
        # A node that comes back after its party's update was counted trains next round.
        counted = current is not None and party not in current.missing
        return await self.next_model(
            party, after=current.number if current is not None and counted else 0
        )

    async def next_model(self, party: str, *, after: int) -> Published:
        """Waits for the model of a round later than `after` and returns it.

        Raises:
            CloisterError: If the run has failed; `party` was told then.
        """
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._failure is not None or self._is_past(after)
            )
            self._check_failed(party)
            if self._published is None:
                raise RuntimeError("woken without a model")
            return self._published

    async def fail(self, error: CloisterError) -> None:
        """Ends the run; every waiting worker is told why."""
        async with self._changed:
            self._failure = error
            self._changed.notify_all()

    async def farewell(self) -> None:
        """Waits, not for long, until every worker was told that the run has failed.

        One that computes is told at its next call. Those whose silence ended the run
        are not waited for.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                while self._joined.intersection(self._finals.missing) - (
                    self._informed | self._silent
                ):
                    self._informs.clear()
                    await self._informs.wait()

    def check_header(self, party: str, header: UpdateHeader) -> ModelHeader:
        """Returns the header of the model that an update is for, if it can count.

        Raises:
            ProtocolError: If it cannot; its chunks need not be read.
            CloisterError: If the run has failed.
        """
        self._check_failed(party)
        self._current().check_header(party, header)
        return self._header()

    async def count(
        self, by: Participant, header: UpdateHeader, update: ModelBuffer
    ) -> None:
        """Counts a whole update; the last one of a round completes it.

        Args:
            by: Whose it is; the caller verified the countersignature.
            header: The update's header.
            update: The update.

        Raises:
            ProtocolError: If the update does not count.
            CloisterError: If the run has failed.
        """
        self.touch()
        async with self._changed:
            self._check_failed(by.party)
            current = self._current()
            current.count(by, header, update)
            if not current.missing:
                self._complete(current)
            self._changed.notify_all()

    def check_report(self, party: str, report: EvaluationReport) -> ModelHeader:
        """Returns the header of the final model, if a report on it can count.

        Raises:
            ProtocolError: If training is not over or the report does not count.
            CloisterError: If the run has failed.
        """
        self._check_failed(party)
        check_evaluation(party, report)
        if not self._is_over():
            raise ProtocolError(
                f"{party!r} finishes before training is over",
                code="finish-early",
                expected="an update",
            )
        return self._header()

    async def finish(self, by: Participant, report: EvaluationReport) -> None:
        """Takes a worker's report on the final model.

        Args:
            by: Whose it is; the caller verified the countersignature.
            report: The report.

        Raises:
            ProtocolError: If training is not over or the report does not count.
            CloisterError: If the run has failed.
        """
        self.touch()
        async with self._changed:
            self.check_report(by.party, report)
            self._finals.take(by, report)
            if self.metrics is None and not self._finals.missing:
                self.metrics, left_out = self._finals.metrics()
                self._tell_left_out(left_out, len(self.metrics))
            self._changed.notify_all()

    async def run(
        self, *, patience_seconds: float, extra_seconds: float = 0.0
    ) -> dict[str, float]:
        """Waits until all is done; returns the final model's metrics.

        Args:
            patience_seconds: Longest silence before the run is given up.
            extra_seconds: What is added to it after the last round: before they report,
                workers bring the last mark to their custodians.

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
                patience = patience_seconds + (
                    extra_seconds if self._is_over() else 0.0
                )
                quiet = time.monotonic() - self._touched
                try:
                    async with asyncio.timeout(max(0.0, patience - quiet)):
                        await self._changed.wait()
                except TimeoutError:
                    if time.monotonic() - self._touched >= patience:
                        raise self._given_up(patience) from None

    def _given_up(self, patience_seconds: float) -> ProtocolError:
        if self._published is None:
            stage, missing = "before training began", self._absent()
        elif self._is_over():
            stage = "after the last round"
            missing = list(self._finals.missing)
        else:
            stage = f"in round {self._current().number}"
            missing = list(self._current().missing)
        self._silent.update(missing)
        return ProtocolError(
            f"gave up waiting {stage}",
            code="worker-missing",
            expected=f"{', '.join(missing)} within {patience_seconds:g} s",
            got="nothing",
            remedy="Start the missing workers; their logs say what stopped them."
            " The wait is patience_seconds in the server's site.toml.",
        )

    def _check_failed(self, party: str) -> None:
        """Tells a party that the run has failed, if it has."""
        if self._failure is not None:
            self._informed.add(party)
            self._informs.set()
            raise self._failure

    def _is_over(self) -> bool:
        return self._published is not None and self._published.header.final

    def _is_past(self, number: int) -> bool:
        return self._published is not None and self._published.header.round > number

    def _absent(self) -> list[str]:
        return [p for p in self._course.parties if p not in self._joined]

    def _header(self) -> ModelHeader:
        if self._published is None:
            raise RuntimeError("no model is out")
        return self._published.header

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
            self._tell_left_out(aggregate.metrics_left_out, len(aggregate.metrics))
        self._round_began = now
        try:
            self._publish(current.number + 1, after=current)
        except StorageError as error:
            # What cannot be recorded does not happen: nobody gets the next model.
            self._failure = error

    def _tell_left_out(self, left_out: int, published: int) -> None:
        """Says once that the parties do not report the same; their words stay out."""
        if left_out and not self._differed:
            self._differed = True
            self._log.warning("metrics-differ", published=published, left_out=left_out)

    def _publish(self, number: int, *, after: Round | None = None) -> None:
        """Publishes the model of round `number`.

        Raises:
            StorageError: If the round that led to it cannot be recorded.
        """
        course = self._course
        final = number > course.rounds
        state = self._state_after(number - 1) if self._marks.take(final=final) else None
        if after is not None:
            self._audit.round_completed(
                after.number,
                head=self._header().audit_head,
                participants=after.participants,
                state=state,
            )
        evaluate = (
            not final and number > 1 and (number - 1) % course.evaluate_every == 0
        )
        self._round = None if final else Round(number, self._rules, evaluate=evaluate)
        header = ModelHeader(
            round=number,
            layout=self._digest,
            evaluate=evaluate,
            final=final,
            audit_head=self._audit.head,
            state=state,
        )
        self._published = Published(header=header, chunks=tuple(chunks_of(self.model)))
        for told in self._told:
            told(header)

    def _state_after(self, number: int) -> bytes:
        return state_digest(
            run_id=self._course.run_id,
            round_number=number,
            layout_digest=self._digest,
            parameters=self.model.parameters,
            statistics=self.model.statistics,
            velocity=self._velocity,
        )


def _diverged(round_number: int) -> ConfigError:
    return ConfigError(
        f"training diverged in round {round_number}",
        code="training-diverged",
        expected="finite parameters",
        got="NaN or infinity",
        remedy="Lower the plan's learning rate, or warm up longer.",
    )
