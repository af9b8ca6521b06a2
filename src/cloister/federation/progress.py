"""A run's way from one round to the next, until it is over or has failed.

Who may do what, and when a round is over, is the state machine's to say
(`rounds.machine`); what follows from it is done here. What handlers ask of a run is in
`coordinator.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor

from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ProtocolError
from cloister.federation.attendance import Attendance
from cloister.federation.audit import RoundAudit
from cloister.federation.course import Course
from cloister.federation.finals import Finals
from cloister.federation.intake import Intake
from cloister.federation.messages import ModelHeader
from cloister.federation.model_state import ModelState
from cloister.federation.published import Ending, Published
from cloister.federation.publisher import Publisher
from cloister.federation.rounds.machine import Phase, RunMachine
from cloister.federation.state import StateKeeper, Witness
from cloister.federation.tally import Tally
from cloister.ratls.unforeseen import unforeseen
from cloister.storage.mirror.subject import Kept

# How many missing parties an error names.
_NAMED = 20


class Progress:
    """The state of a run, and what moves it on.

    Args:
        course: What the plan fixes.
        state: The state that training goes on from; belongs to the run.
        keeper: Keeps it; its newest is this one.
        witness: Is told of each round's state where the quorum is a number.
        audit: Receives every round; its head goes out with every model.
        threads: Where the arithmetic runs (`publisher.ARITHMETIC_THREADS`).
        log: Receives one line a round, with aggregates only.
        elapsed: A counter of seconds; it says when a mark is due.

    Attributes:
        model: The model.
        wire: How models and updates travel.
        traffic: What has travelled.
        metrics: The final model's; None until the run is over.
    """

    def __init__(  # noqa: PLR0913 - all that a run is made of
        self,
        course: Course,
        state: ModelState,
        *,
        keeper: StateKeeper,
        witness: Witness,
        audit: RoundAudit,
        threads: Executor,
        log: FilteringBoundLogger,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._course = course
        self._witness = witness
        self._log = log
        self._told: list[Callable[[ModelHeader], None]] = []
        self._digest = state.model.layout.digest()
        self._publisher = Publisher(
            course,
            state,
            keeper=keeper,
            audit=audit,
            threads=threads,
            log=log,
            elapsed=elapsed,
        )
        self._machine = RunMachine(
            course.rules, completed=keeper.newest.round, cohort=keeper.cohort()
        )
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
        # Set when the model is sealed, or at a failure.
        self._released = asyncio.Event()
        self._moving: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.model = state.model
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

    async def fail(self, error: CloisterError) -> None:
        """Ends the run; every waiting worker is told why."""
        intake = self._intake
        self._fail(error)
        if self._moving is not None:
            await asyncio.wait((self._moving,))
        if intake is not None:
            await intake.settle()

    async def rest(self) -> Kept:
        """Returns the newest durable state, of a run that has failed (`fail`).

        Raises:
            StorageError: If the state of its last round cannot be kept.
        """
        return await self._publisher.rest()

    def release(self) -> None:
        """Lets those go who have reported: the model is sealed, and recorded."""
        self._released.set()

    async def farewell(self) -> None:
        """Waits, not for long, until every worker was told that the run has failed.

        One that computes is told at its next call. Those whose silence ended the run
        are not waited for.
        """
        await self._attendance.farewell()

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
                self._publish(self._publisher.first())
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
            told=self._tell_party,
            publish=self._publish,
        )

    async def _tell_party(self, kept: Kept) -> None:
        """Returns when the server's own party knows of a state.

        Raises:
            CloisterError: If the run fails first. What brings the news may have ended
                by then, and whoever failed the run waits for the round to end.
        """
        telling = asyncio.ensure_future(self._witness.told(kept))
        failing = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((telling, failing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            telling.cancel()
            failing.cancel()
            await asyncio.gather(telling, failing, return_exceptions=True)
        if self._failure is not None:
            raise self._failure
        telling.result()

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
        self._released.set()

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
            Phase.GATHERING: f"before round {self._machine.round + 1} began",
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
