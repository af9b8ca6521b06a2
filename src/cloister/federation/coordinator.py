"""Carries a run from round to round: the server's state, without any network.

The coordinator owns the model. Handlers bring it updates and wait for the model it
publishes next; it knows no bytes on a wire and no peer, only party names that the
admission table has vouched for. Who may do what, and when a round is over, is the state
machine's to say (`rounds.machine`); what it says is done here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ProtocolError
from cloister.federation.attendance import Attendance
from cloister.federation.audit import RoundAudit
from cloister.federation.audit_records import Participant
from cloister.federation.course import Course
from cloister.federation.finals import Finals
from cloister.federation.intake import Intake
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import EvaluationReport, ModelHeader, UpdateHeader
from cloister.federation.published import Ending, Published
from cloister.federation.publisher import Publisher
from cloister.federation.rounds.checks import (
    check_evaluation,
    check_layout,
    check_update_header,
)
from cloister.federation.rounds.machine import Phase, RunMachine
from cloister.federation.rounds.refusals import refusal
from cloister.federation.staging import Place
from cloister.federation.tally import Tally
from cloister.federation.updates import Update
from cloister.ratls.unforeseen import unforeseen

# How many missing parties an error names.
_NAMED = 20


class Coordinator:
    """Runs the rounds of one plan.

    Args:
        course: What the plan fixes.
        model: The model training starts from; belongs to the coordinator.
        audit: Receives every round; its head goes out with every model.
        threads: Where the arithmetic runs (`publisher.ARITHMETIC_THREADS`).
        log: Receives one line a round, with aggregates only.
        elapsed: A counter of seconds; it says when a mark is due.
    """

    def __init__(
        self,
        course: Course,
        model: ModelBuffer,
        *,
        audit: RoundAudit,
        threads: Executor,
        log: FilteringBoundLogger,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._course = course
        self._log = log
        self._told: list[Callable[[ModelHeader], None]] = []
        self._digest = model.layout.digest()
        self._publisher = Publisher(
            course, model, audit=audit, threads=threads, log=log, elapsed=elapsed
        )
        self._machine = RunMachine(course.rules)
        self._published: Published | None = None
        self._intake: Intake | None = None
        self._tally = Tally()
        # Whose update has counted: no update comes before its party knows of the run.
        self._known: set[str] = set()
        self._finals = Finals()
        self._ending: Ending | None = None
        self._attendance = Attendance()
        self._failure: CloisterError | None = None
        self._news = asyncio.Event()  # set once, for a model, new seats or a failure
        self._over = asyncio.Event()
        self._moving: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.model = model
        self.wire = self._publisher.wire
        self.traffic = self._publisher.traffic
        self.metrics: dict[str, float] | None = None

    @property
    def failure(self) -> CloisterError | None:
        """Why the run has failed; None while it has not."""
        return self._failure

    @property
    def ending(self) -> Ending:
        """How training ended; it must have."""
        if self._ending is None:
            raise RuntimeError("training is not over")
        return self._ending

    def subscribe(self, told: Callable[[ModelHeader], None]) -> None:
        """Has `told` called with the header of every model, as it is published."""
        self._told.append(told)

    def touch(self) -> None:
        """Notes that something arrived; the run is alive."""
        self._attendance.touch()

    def initial_state(self) -> bytes:
        """Returns the digest of the state before the first round."""
        return self._publisher.initial_state()

    async def join(self, party: str, layout: str) -> Published:
        """Notes a worker's arrival; returns the model it is to train.

        Raises:
            ProtocolError: If the worker's task lays its model out differently.
            CloisterError: If the run has failed; `party` was told then.
        """
        check_layout(party, expected=self._digest, got=layout)
        self.touch()
        self._machine.join(party)
        if come := self._attendance.join(party):
            missing = len(self._course.parties) - come
            self._log.info("worker-joined", peer=party, missing=missing)
        if self._deadline is None and self._machine.phase is Phase.GATHERING:
            self._set_deadline()
        with self.waiting(party):
            return await self.next_model(party, after=0)

    @contextmanager
    def waiting(self, party: str) -> Iterator[None]:
        """Notes that a call of `party` waits for a model, or soon will."""
        self._machine.wait(party)
        try:
            self._move_on()
            yield
        finally:
            self._machine.leave(party)

    async def next_model(self, party: str, *, after: int) -> Published:
        """Returns the next model that `party` is to train, or the final one.

        Args:
            party: Who waits (`waiting`).
            after: The model is of a later round than this.

        Raises:
            CloisterError: If the run has failed; `party` was told then.
        """
        while True:
            self._check_failed(party)
            out = self._published
            if (
                out is not None
                and out.header.round == self._machine.round
                and self._machine.take_model(party, after=after)
            ):
                return out
            await self._news.wait()

    async def fail(self, error: CloisterError) -> None:
        """Ends the run; every waiting worker is told why."""
        intake = self._intake
        self._fail(error)
        if self._moving is not None:
            await asyncio.wait((self._moving,))
        if intake is not None:
            await intake.settle()

    async def farewell(self) -> None:
        """Waits, not for long, until every worker was told that the run has failed.

        One that computes is told at its next call. Those whose silence ended the run
        are not waited for.
        """
        await self._attendance.farewell()

    async def intake(self, party: str, header: UpdateHeader) -> Intake:
        """Returns what takes an update, if it can count; its chunks need not have come.

        Raises:
            ProtocolError: If it cannot.
            CloisterError: If the run has failed.
        """
        if self._moving is not None:
            # A model may be known before the step that makes it is over.
            await asyncio.wait((self._moving,))
        self.check_header(party, header)
        if self._intake is None:
            raise RuntimeError("an update can count, and there is no round")
        return self._intake

    def check_header(self, party: str, header: UpdateHeader) -> ModelHeader:
        """Returns the header of the model that an update is for, if it can count.

        Raises:
            ProtocolError: If it cannot; its chunks need not be read.
            CloisterError: If the run has failed.
        """
        self._check_failed(party)
        self._machine.check_offer(party, round_number=header.round)
        out = self._published
        if out is None or out.header.round != header.round:
            # The machine is ahead while a model is made; this one nobody can have.
            raise refusal(
                party,
                "update-round",
                expected="an update of the model that is out",
                got=f"round {header.round}",
            )
        check_update_header(
            party,
            header,
            examples=self._course.examples,
            digest=self._digest,
            evaluate=out.header.evaluate,
        )
        return out.header

    def count(
        self, by: Participant, header: UpdateHeader, *, update: Update, place: Place
    ) -> None:
        """Counts a whole update; the last one of a round ends it.

        Args:
            by: Whose it is; the caller verified the countersignature, and its call
                waits (`waiting`).
            header: The update's header.
            update: The update; its values were checked as they came.
            place: Its place.

        Raises:
            ProtocolError: If the update does not count.
            CloisterError: If the run has failed.
        """
        self.touch()
        self.check_header(by.party, header)
        self._machine.count(by.party, round_number=header.round)
        if self._intake is None:
            raise RuntimeError("an update counts, and there is no round")
        self._tally.take(by, header)
        self._intake.take(place, update)
        self._move_on()

    def check_report(self, party: str, report: EvaluationReport) -> ModelHeader:
        """Returns the header of the final model, if a report on it can count.

        Raises:
            ProtocolError: If training is not over or the report does not count.
            CloisterError: If the run has failed.
        """
        self._check_failed(party)
        check_evaluation(party, report)
        if self._published is None or not self._published.header.final:
            raise ProtocolError(
                f"{party!r} finishes before training is over",
                code="finish-early",
                expected="an update",
            )
        return self._published.header

    def finish(self, by: Participant, report: EvaluationReport) -> None:
        """Takes a worker's report on the final model.

        Args:
            by: Whose it is; the caller verified the countersignature.
            report: The report.

        Raises:
            ProtocolError: If training is not over or the report does not count.
            CloisterError: If the run has failed.
        """
        self.touch()
        self.check_report(by.party, report)
        self._attendance.content(by.party)
        if self._machine.report(by.party):
            self._finals.take(by, report)
            self._move_on()

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
        while not self._over.is_set():
            phase = self._machine.phase
            # Nothing need come while a round waits for its deadline.
            patience = patience_seconds + (self._course.deadline_seconds or 0.0)
            if phase is Phase.REPORTING:
                patience += extra_seconds
            silent = await self._attendance.silence(
                self._over, patience_seconds=patience
            )
            if self._moving is not None:
                self.touch()  # it is this side that takes its time
            elif silent and self._machine.phase is phase:
                raise self._given_up(patience)
        if self._failure is not None:
            raise self._failure
        if self.metrics is None:
            raise RuntimeError("a run is over with its metrics")
        return self.metrics

    def _move_on(self) -> None:
        """Ends the round, or whatever the run is at, as soon as it may end."""
        if self._moving is None and self._failure is None and self._machine.may_close:
            self._moving = asyncio.create_task(self._moved())

    async def _moved(self) -> None:
        try:
            if self._failure is not None or not self._machine.may_close:
                return  # the run failed, or who waited has left, since this was begun
            phase = self._machine.phase
            parties = self._machine.close()
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            if phase is Phase.GATHERING:
                self._publish(await self._publisher.first())
            elif phase is Phase.TRAINING:
                await self._next_round(parties)
            else:
                self._end(parties)
        except CloisterError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - a round that nobody ends would hang
            self._fail(unforeseen(error))
        finally:
            self._moving = None
            if self._failure is not None:
                self._forget()
        self._move_on()

    async def _next_round(self, parties: tuple[str, ...]) -> None:
        """Ends a round with the updates of `parties`, and begins the next."""
        if self._intake is None:
            raise RuntimeError("a round that ends has begun")
        self._known.update(parties)
        await self._publisher.next(
            self._out(),
            parties,
            intake=self._intake,
            tally=self._tally,
            final=self._machine.phase is Phase.REPORTING,
            stated=not self._known.issuperset(self._may_contribute()),
            publish=self._publish,
        )

    def _may_contribute(self) -> tuple[str, ...]:
        """Returns who may get the model of the machine's round."""
        course, machine = self._course, self._machine
        return machine.seated if course.quorum is None else course.parties

    def _publish(self, published: Published) -> None:
        """Hands out the model of the machine's round."""
        if self._failure is not None:
            raise self._failure
        self.touch()
        self._published = published
        self._tally = Tally()
        self._intake = (
            None
            if published.header.final
            else self._publisher.new_intake(
                self._machine.seated,
                failed=lambda error: self._fail(unforeseen(error)),
            )
        )
        self._set_deadline()
        self._wake()
        for told in self._told:
            told(published.header)

    def _end(self, parties: tuple[str, ...]) -> None:
        """Ends the run: every report that counts is there."""
        metrics, left_out = self._finals.metrics(parties)
        self._ending = Ending(
            model=self._out().header, reports=self._finals.participants(parties)
        )
        self.metrics = metrics
        self._publisher.tell_left_out(left_out, len(metrics))
        self._over.set()

    def _set_deadline(self) -> None:
        seconds, number = self._course.deadline_seconds, self._machine.round
        if seconds is not None and self._failure is None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(seconds, self._expire, number)

    def _expire(self, number: int) -> None:
        self._machine.expire(round_number=number)
        if number == self._machine.round:
            self._set_deadline()
            self._wake()  # seats may be given anew
            self._move_on()

    def _fail(self, error: CloisterError) -> None:
        # The frames of a step that failed hold updates; so do those of one that fails
        # while its model is being refused with the failure there already is.
        for it in (error, self._failure or error):
            it.__traceback__ = it.__cause__ = it.__context__ = None
        if self._failure is not None:
            return
        self._failure = error
        if self._deadline is not None:
            self._deadline.cancel()
        if self._published is not None:
            self._published.end(error)
        if self._intake is not None:
            self._intake.staging.end(error)
        if self._moving is None:
            self._forget()
        self._wake()
        self._over.set()

    def _forget(self) -> None:
        """Drops what single parties sent in a round that will not end."""
        if self._intake is not None:
            self._intake.abandon()
        self._intake = None
        self._tally = Tally()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _given_up(self, patience_seconds: float) -> ProtocolError:
        stage = {
            Phase.GATHERING: "before training began",
            Phase.TRAINING: f"in round {self._machine.round}",
        }.get(self._machine.phase, "after the last round")
        missing = self._machine.missing
        self._attendance.content(*missing)
        return ProtocolError(
            f"gave up waiting {stage}",
            code="worker-missing",
            expected=f"{_names(missing)} within {patience_seconds:g} s",
            got="nothing",
            remedy="Start the missing workers; their logs say what stopped them."
            " The wait is patience_seconds in the server's site.toml: longer than any"
            " of them computes in a round.",
        )

    def _check_failed(self, party: str) -> None:
        """Tells a party that the run has failed, if it has."""
        if self._failure is not None:
            self._attendance.content(party)
            raise self._failure

    def _out(self) -> Published:
        if self._published is None:
            raise RuntimeError("no model is out")
        return self._published


def _names(parties: tuple[str, ...]) -> str:
    """Returns whom to look for first, of perhaps a thousand."""
    more = f" and {len(parties) - _NAMED} more" if len(parties) > _NAMED else ""
    return ", ".join(parties[:_NAMED]) + more
