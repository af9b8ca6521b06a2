"""What the training port's handlers ask of a run; no network, no bytes on a wire.

Handlers bring updates and wait for the model that comes next. The coordinator knows no
peer, only party names that the admission table has vouched for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cloister.errors import ProtocolError
from cloister.federation.audit_records import Participant
from cloister.federation.intake import Intake
from cloister.federation.messages import EvaluationReport, ModelHeader, UpdateHeader
from cloister.federation.progress import Progress
from cloister.federation.published import Published
from cloister.federation.rounds.checks import (
    check_evaluation,
    check_layout,
    check_update_header,
)
from cloister.federation.rounds.machine import Phase
from cloister.federation.rounds.refusals import refusal
from cloister.federation.staging import Place
from cloister.federation.updates import Update


class Coordinator(Progress):
    """Runs the rounds of one plan: what a worker can do in them, and what it gets."""

    @property
    def first_chunk_bytes(self) -> int:
        """Size of the chunk that an update's header may bring; 0 where none may."""
        return self.wire.chunk_bytes if self._course.at_once else 0

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

    def intake(self, party: str, header: UpdateHeader) -> Intake:
        """Returns what takes an update, if it can count; its chunks need not have come.

        Raises:
            ProtocolError: If it cannot.
            CloisterError: If the run has failed.
        """
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
            party, header, model=out.header, examples=self._course.examples
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
        if self._machine.report(by.party):
            self._finals.take(by, report)
            self._move_on()

    async def until_sealed(self, party: str) -> None:
        """Waits until a worker that has reported may go.

        That is when the model is sealed and recorded: a server that dies before needs
        the reports once more.

        Raises:
            CloisterError: If the run has failed; `party` was told then.
        """
        await self._released.wait()
        self._check_failed(party)
        self._attendance.content(party)
