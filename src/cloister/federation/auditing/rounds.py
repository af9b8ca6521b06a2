"""The rounds of a run's log, and the seal: in their order, and who saw which head.

Steps 7 and 8 of `audit_verification`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.errors import VerificationError
from cloister.federation.audit_records import (
    ModelSealed,
    Participant,
    RoundCompleted,
    RunFailed,
    ServerIntroduced,
)
from cloister.federation.auditing.admissions import Admissions
from cloister.federation.auditing.opening import Opening
from cloister.federation.auditing.participants import Participants
from cloister.federation.auditing.report import Attendance, Moment
from cloister.plan.digest import digest_bytes
from cloister.ratls.audit_key import verify_countersignature


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the run is at one place of the log.

    Attributes:
        completed: Rounds completed.
        marked: The last of them after which the state was computed; marks are of it.
        state: SHA-256 of that state, hex; None before any.
    """

    completed: int
    marked: int
    state: str | None


class RunRounds:
    """Follows a run from round to round.

    Args:
        opening: What the log's first record fixes.

    Attributes:
        recorded: Rounds in the log, those that were done again counted again.
        countersigned: The last record whose head went out with a model and was signed
            by every node that took part in what followed.
        sealed: Whether the run is over.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._participants = Participants(opening.plan)
        self._states: dict[int, str] = {}
        self._completed: int | None = None
        self._marked = 0
        self._failed = False
        # Heads that may have gone out with the model of the round that runs.
        self._heads: dict[str, Moment] = {}
        self.recorded = 0
        self.countersigned: Moment | None = None
        self.sealed = False

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return Progress(
            completed=self._completed or 0,
            marked=self._marked,
            state=self._states.get(self._marked),
        )

    @property
    def attendance(self) -> Attendance:
        """Who took part so far."""
        return self._participants.attendance

    def begin_server(self, unverified: ServerIntroduced) -> int:
        """Takes over a server's state; returns how many rounds it begins without.

        The first one begins where the plan does. Any other may have lost rounds, and
        does them again; it has the state that this log has of where it begins, if it
        has one.

        Raises:
            VerificationError: If it begins anywhere else.
        """
        completed, state = unverified.completed, unverified.state.hex()
        least, known = self._start()
        most = least
        if self._completed is not None:
            most, known = self._completed, self._states.get(completed)
        if not least <= completed <= most:
            raise VerificationError(
                "a server begins after rounds that this log does not have",
                code="audit-round",
                expected=f"{least} to {most} rounds completed"
                if least < most
                else f"{most} rounds completed",
                got=str(completed),
            )
        if known is not None and known != state:
            raise VerificationError(
                f"a server begins with another state of round {completed}",
                code="audit-state",
                expected=known,
                got=state,
            )
        lost = most - completed
        # What was done after that is no part of the run any more.
        self._states = {
            number: it for number, it in self._states.items() if number <= completed
        }
        self._participants.forget_after(completed)
        self._states[completed] = state
        self._completed = self._marked = completed
        self._failed = False
        self._heads.clear()
        return lost

    def note_head(self, head: str, at: Moment) -> None:
        """Notes the head after a record; a model may go out with it."""
        self._heads[head] = at

    def fail(self, unverified: RunFailed) -> None:
        """Notes that the server gave up: it has no further rounds.

        Raises:
            VerificationError: If it says another state than it did before.
        """
        self._failed = True
        completed, state = self.progress.completed, unverified.state
        if state is None:
            return
        known = self._states.setdefault(completed, state)
        if known != state:
            raise VerificationError(
                f"a server gives up with another state of round {completed}",
                code="audit-state",
                expected=known,
                got=state,
            )
        self._marked = completed

    def complete(self, unverified: RoundCompleted, *, admissions: Admissions) -> None:
        """Takes a round.

        Steps: (1) it is the next one, and the plan has it; (2) the head that went out
        with its model lies in the log between the round before and this record; (3)
        the plan lets just these workers be all that took part; (4) each did with a node
        that was admitted while the round ran and that countersigned that head.

        Not pinned by anything but the server's signature: `state`, until a custodian's
        head vouches for it or a server begins with it.

        Raises:
            VerificationError: If any step fails.
        """
        rounds = self._opening.plan.training.rounds
        following = self.progress.completed + 1
        # Step 1: the next
        if self.sealed or self._failed or following > rounds:
            raise VerificationError(
                "a round is completed after the end",
                code="audit-over",
                expected=f"no round after {rounds}, a seal, or a failure",
                got=f"round {unverified.round}",
            )
        if unverified.round != following:
            raise VerificationError(
                "a round does not follow the one before",
                code="audit-round",
                expected=f"round {following}",
                got=f"round {unverified.round}",
            )
        # Step 2: the head
        sent = self._find_head(unverified.head, round_number=following)
        # Step 3: who
        parties = self._participants.check_round(
            [it.party for it in unverified.participants], round_number=following
        )
        # Step 4: with which nodes
        self._check_nodes(
            unverified.participants,
            sent=sent,
            head=unverified.head,
            round_number=following,
            admissions=admissions,
        )
        self._participants.note(parties, round_number=following)
        self._completed = following
        self._states.pop(following, None)
        if unverified.state is not None:
            self._states[following] = unverified.state
            self._marked = following
        self.recorded += 1
        self._heads.clear()
        admissions.forget_before(sent)

    def seal(self, unverified: ModelSealed, *, admissions: Admissions) -> None:
        """Takes the end of the run.

        Steps: (1) it is once, after the plan's last round; (2) the model is of the
        state after it, and sealed to the plan's recipients, in their order; (3) as in
        steps 2 to 4 of `complete`, for the reports on the final model.

        Not pinned by anything but the server's signature: which bytes the sealed model
        has. Whoever has the file compares them.

        Raises:
            VerificationError: If any step fails.
        """
        plan = self._opening.plan
        completed, rounds = self.progress.completed, plan.training.rounds
        # Step 1: at the end
        if self.sealed or self._failed or completed != rounds:
            raise VerificationError(
                "the model is sealed before the last round, or after the end",
                code="audit-seal",
                expected=f"one seal, after round {rounds}",
                got=f"a seal after round {completed}",
            )
        # Step 2: what, and for whom
        for what, expected, got in (
            ("rounds", str(rounds), str(unverified.rounds)),
            (
                "state",
                self._states.get(rounds, unverified.state),
                unverified.state,
            ),
            (
                "recipients",
                ", ".join(plan.recipients),
                ", ".join(unverified.recipients),
            ),
        ):
            if expected != got:
                raise VerificationError(
                    f"the model is sealed with other {what}",
                    code="audit-seal",
                    expected=expected,
                    got=got,
                )
        # Step 3: the reports. The final model goes out as that of one round more.
        sent = self._find_head(unverified.head, round_number=rounds + 1)
        self._participants.check_reports([it.party for it in unverified.reports])
        self._check_nodes(
            unverified.reports,
            sent=sent,
            head=unverified.head,
            round_number=rounds + 1,
            admissions=admissions,
        )
        self._states[rounds] = unverified.state
        self._marked = rounds
        self.sealed = True

    def _start(self) -> tuple[int, str | None]:
        """Returns after how many rounds the plan begins, and with which state."""
        before = self._opening.plan.predecessor
        if before is None:
            return 0, None
        return before.round, digest_bytes(before.state).hex()

    def _find_head(self, head: str, *, round_number: int) -> Moment:
        """Returns the record after which a round's model went out."""
        sent = self._heads.get(head)
        if sent is None:
            raise VerificationError(
                f"the head that went out with the model of round {round_number} is not"
                " in the log at its place",
                code="audit-head",
                expected="a head since the round before, or since the server began",
                got=head,
                remedy="The workers were shown another log than this one.",
            )
        return sent

    def _check_nodes(
        self,
        unverified: tuple[Participant, ...],
        *,
        sent: Moment,
        head: str,
        round_number: int,
        admissions: Admissions,
    ) -> None:
        """Checks that admitted nodes saw the head that went out with a model."""
        for it in unverified:
            key = admissions.find(
                it.party, it.tls_key_sha256, sent=sent, round_number=round_number
            )
            verify_countersignature(
                key,
                it.countersignature,
                run_id=self._opening.plan.run_id,
                plan_hash=self._opening.plan_hash,
                round_number=round_number,
                head=bytes.fromhex(head),
            )
        self.countersigned = sent
