"""Makes each round's model out of the last one, records the round, and publishes it.

What cannot be recorded does not happen: the record is written before anybody gets a
byte of the model that a round led to.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial

from structlog.typing import FilteringBoundLogger

from cloister.federation.aggregation import ExactSum, OrderedSum
from cloister.federation.audit import RoundAudit
from cloister.federation.course import Course
from cloister.federation.intake import Intake, OrderedIntake, SharedIntake
from cloister.federation.messages import ModelHeader
from cloister.federation.model_state import Mean, ModelState
from cloister.federation.published import Published, Traffic, superseded
from cloister.federation.rounds.refusals import late
from cloister.federation.saves import Saves
from cloister.federation.staging import transfer_seconds
from cloister.federation.state import MarkTimer, StateKeeper
from cloister.federation.tally import Tally
from cloister.federation.wire_format import wire_format
from cloister.storage.mirror.subject import Kept

# Threads that make a step; it is bound by memory, and more do not help.
STEP_THREADS = 2
# One more waits for them, or adds an update meanwhile.
ARITHMETIC_THREADS = STEP_THREADS + 1


class Publisher:
    """The server's model from round to round.

    Args:
        course: What the plan fixes.
        state: The state that training goes on from; belongs to the publisher.
        keeper: Keeps it; its newest is this one.
        audit: Receives every round; its head goes out with every model.
        threads: Where the arithmetic runs; `ARITHMETIC_THREADS`.
        log: Receives one line a round, with aggregates only.
        elapsed: A counter of seconds; it says when a mark is due.

    Attributes:
        wire: How models and updates travel.
        traffic: What has travelled.
    """

    def __init__(  # noqa: PLR0913 - all that a run is made of
        self,
        course: Course,
        state: ModelState,
        *,
        keeper: StateKeeper,
        audit: RoundAudit,
        threads: Executor,
        log: FilteringBoundLogger,
        elapsed: Callable[[], float],
    ) -> None:
        model = state.model
        self._course = course
        self._model = model
        self._state = state
        self._saves = Saves(keeper, audit=audit, threads=threads)
        self._audit = audit
        self._threads = threads
        self._log = log
        self._marks = MarkTimer(elapsed)
        self._digest = model.layout.digest()
        self._total: OrderedSum | ExactSum = (
            ExactSum(model.layout, parties=course.seats)
            if course.exact_sum
            else OrderedSum(model.layout)
        )
        self._differed = False
        self._began = time.monotonic()
        self.wire = wire_format(course.wire, model.layout, workers=len(course.parties))
        self.traffic = Traffic()

    def first(self) -> Published:
        """Returns the first model that goes out, which is there as it is.

        It is that of the round after the newest state, or the final one.
        """
        self._marks.take(final=False)
        self._began = time.monotonic()
        kept = self._saves.newest
        final = kept.round == self._course.rounds
        return self._published(kept.round + 1, kept.digest, final=final)

    async def rest(self) -> Kept:
        """Returns the newest durable state, when no save is under way.

        For a run that ends before its time. If the last round's state is there and not
        kept, it is kept now.

        Raises:
            StorageError: If it cannot be written.
        """
        return await self._saves.rest()

    async def next(  # noqa: PLR0913 - all it takes to end a round
        self,
        former: Published,
        parties: tuple[str, ...],
        *,
        intake: Intake,
        tally: Tally,
        final: bool,
        stated: bool,
        told: Callable[[Kept], Awaitable[None]],
        publish: Callable[[Published], None],
    ) -> None:
        """Ends a round: its mean makes the next model, which goes out.

        Args:
            former: The round's model.
            parties: Whose updates count, in plan order.
            intake: Took them.
            tally: What was said with them.
            final: Whether the next model is the final one.
            stated: Whether the next model says its state, mark due or not: it may be
                the first of some party, whose memory of the run begins with it.
            told: Called with the round's state, once it is durable, where the quorum is
                a number; returns when the server's own party knows of it.
            publish: Called with the next model once the round is recorded.

        What is published when, so that no server that comes back contradicts what
        anybody saw:

        - Where all must contribute, a round that is done again gives the very same
          bits. So its model goes out at once, and the state is saved while the workers
          are busy with it. The next step, which changes the state, waits for that.
        - A state that is stated is durable first: others hold the next server to it.
        - With a number as quorum another cohort would give other bits. So it is noted
          before anything is added up, and the state is always durable first, recorded,
          and known to the server's own party: where that knows a round's state, no
          server begins with one before it, whatever the host puts back.

        A record comes before the commit of its round: a log may be ahead of the state,
        and a state never of its log.

        Raises:
            StorageError: If the round cannot be recorded, or the state not be kept.
            ConfigError: If training diverged.
            CloisterError: As `told`.
        """
        number, by_number = former.header.round, self._course.quorum is not None
        head = former.header.audit_head
        if by_number:
            await self._saves.choose(number, parties)
        mean = await intake.close(late(number))
        # Nobody gets half of one model and half of another.
        former.end(superseded(number))
        await self._saves.settled()
        kept = None
        with self._saves.changing(number, head=head):
            await self._step(mean, number)
            stated = self._marks.take(final=final or stated)
            if stated or by_number:
                kept = await self._saves.seal(number, head=head)
            self._audit.round_completed(
                number,
                head=head,
                participants=tally.participants(parties),
                state=None if kept is None else kept.digest,
            )
        if kept is not None:
            await self._saves.commit()
            if by_number:
                await told(kept)
        # Not before: a round that is done again by others has another loss, and two
        # means show what one party's part in them was.
        self._tell(number, parties, tally)
        # Workers' custodians need not know of every round.
        state = kept.digest if kept is not None and stated else None
        publish(self._published(number + 1, state, final=final))
        if kept is None and number % self._course.mirror_every == 0:
            self._saves.begin(number, head=head)
        if final:
            self._total.wipe()
        else:
            self._total.reset()

    def new_intake(
        self, seated: tuple[str, ...], *, failed: Callable[[Exception], None]
    ) -> Intake:
        """Returns what takes the updates of a new round.

        Args:
            seated: Who contributes; all of them, where all must.
            failed: Called if an update cannot be added.
        """
        size, threads = self.wire.size_bytes, self._threads
        if isinstance(self._total, OrderedSum):
            return OrderedIntake(
                seated, self._total, update_bytes=size, threads=threads, failed=failed
            )
        # Where all must contribute, the round waits for the slow ones, too.
        everybody = self._course.quorum is None
        return SharedIntake(
            self._total,
            update_bytes=size,
            allowed_seconds=math.inf if everybody else transfer_seconds(size),
            threads=threads,
            failed=failed,
        )

    def tell_left_out(self, left_out: int, published: int) -> None:
        """Says once that the parties do not report the same; their words stay out."""
        if left_out and not self._differed:
            self._differed = True
            self._log.warning("metrics-differ", published=published, left_out=left_out)

    async def _step(self, mean: Mean, number: int) -> None:
        """Makes the next model; nobody reads it meanwhile.

        At full speed, before any of it goes out: sending what is there while the rest
        is made takes longer, for both want the same cores.

        Raises:
            ConfigError: If training diverged, or the plan's own strategy failed.
            CancelledError: If it was cancelled; the step is over then, for threads
                that write into the model cannot be stopped.
        """
        work = asyncio.get_running_loop().run_in_executor(
            self._threads,
            partial(
                self._state.step,
                mean,
                rate=self._course.server_rate(number),
                round_number=number,
                threads=self._threads,
                count=STEP_THREADS,
            ),
        )
        cancelled = None
        while not work.done():
            try:
                await asyncio.wait((work,))
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        work.result()

    def _published(
        self, number: int, state: bytes | None, *, final: bool = False
    ) -> Published:
        every, audit = self._course.evaluate_every, self._audit
        header = ModelHeader(
            round=number,
            layout=self._digest,
            evaluate=not final and number > 1 and (number - 1) % every == 0,
            final=final,
            at_once=self._course.at_once,
            # With a state it goes into marks.
            audit_head=audit.head if state is None else audit.durable_head,
            state=state,
        )
        return Published(header, self._model, self.wire)

    def _tell(self, number: int, parties: tuple[str, ...], tally: Tally) -> None:
        now = time.monotonic()
        self._log.info(
            "round",
            round=number,
            rounds=self._course.rounds,
            loss=tally.loss(parties),
            learning_rate=self._course.rate.at(number),
            parties=len(parties),
            bytes_received=self.traffic.received,
            bytes_sent=self.traffic.sent,
            seconds=round(now - self._began, 6),
        )
        self._began = now
        metrics, left_out = tally.metrics(parties)
        if metrics is not None:
            # The workers evaluated the model they received, before this round's step.
            self._log.info("evaluation", round=number - 1, metrics=metrics)
            self.tell_left_out(left_out, len(metrics))
