"""A run as a state machine: who has a seat, what counts, and when a round closes.

Follows `docs/spec/rounds.md`. It holds party names and nothing else: no I/O, no clock,
no array. Its owner tells it what happened, and after each event does this:

    if machine.may_close:
        participants = machine.close()  # of the phase or round that ended

What `take_model` says to a call that waits changes with `close` and `expire` alone; so
only then the calls are woken, in the order in which they came.

A call that asks for a model (`Receive`) is `join`, `wait`, then `take_model` until it
says yes, then `leave`; `leave` as well if the call ends before. A call that brings an
update (`Contribute`) is `check_offer`, then, with the whole update, `wait` and `count`,
and then as above. `wait` comes before `count` and before `close`: the next round's
seats are drawn among those who wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from enum import Enum

from cloister.errors import ProtocolError
from cloister.federation.rounds.cohort import draw
from cloister.federation.rounds.refusals import ASK_AGAIN, late, refusal


class Phase(Enum):
    """Where a run is."""

    GATHERING = "gathering"
    TRAINING = "training"
    REPORTING = "reporting"
    OVER = "over"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRules:
    """What the plan says about who takes part.

    Attributes:
        parties: The workers, in plan order.
        seats: How many of them take part in a round.
        quorum: The fewest updates a round may close with once its deadline has passed;
            None if every seat must contribute, however long it takes.
        rounds: Rounds of training.
        seed: What the draws of seats depend on.
    """

    parties: tuple[str, ...]
    seats: int
    quorum: int | None
    rounds: int
    seed: int

    def __post_init__(self) -> None:
        least = self.seats if self.quorum is None else self.quorum
        if not 1 <= least <= self.seats <= len(self.parties) or self.rounds < 1:
            raise RuntimeError("a plan's rounds are checked before they are run")


class RunMachine:
    """Says what may happen in a run, and keeps what did.

    Every method that takes a party raises `RuntimeError` if the plan has no such
    worker: admission vouches for names.

    Args:
        rules: What the plan says.
        completed: Rounds completed before this machine: the run goes on after them.
        cohort: Who has the seats of the first round to come, and nobody else: a server
            before this one was going to make the round of their updates. Nobody: they
            are drawn.
    """

    def __init__(
        self,
        rules: RunRules,
        *,
        completed: int = 0,
        cohort: tuple[str, ...] = (),
    ) -> None:
        if not 0 <= completed <= rules.rounds or not set(cohort) <= set(rules.parties):
            raise RuntimeError("a state is checked before its run goes on")
        self._rules = rules
        self._known = frozenset(rules.parties)
        self._phase = Phase.GATHERING
        self._round = completed
        self._cohort = cohort
        self._joined: set[str] = set()
        self._waiting: Counter[str] = Counter()
        self._seated: set[str] = set()
        self._open_seats = 0
        self._done: set[str] = set()  # updates counted, or reports
        self._expired = False

    @property
    def phase(self) -> Phase:
        """Where the run is."""
        return self._phase

    @property
    def round(self) -> int:
        """Number of the model that is out.

        While gathering the round completed last, 0 before any; then the round, and one
        more than the last round from when the final model is out.
        """
        return self._round

    @property
    def seated(self) -> tuple[str, ...]:
        """Who has a seat in this round, in plan order."""
        return self._in_plan_order(self._seated)

    @property
    def open_seats(self) -> int:
        """How many seats of this round nobody has; always 0 if all must contribute."""
        return self._open_seats

    @property
    def counted(self) -> tuple[str, ...]:
        """Whose update, or report, of this round counts, in plan order."""
        return self._in_plan_order(self._done)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Who has a call that waits for a model, in plan order."""
        return self._in_plan_order(self._waiting)

    @property
    def missing(self) -> tuple[str, ...]:
        """Who could still bring this phase or round to its end, in plan order.

        While gathering, who has not joined; in training, who has a seat and has not
        contributed, and while seats are open everybody else who has not; then, who has
        not reported.
        """
        match self._phase:
            case Phase.GATHERING:
                return self._in_plan_order(self._known - self._joined)
            case Phase.TRAINING:
                may = self._known if self._open_seats else self._seated
                return self._in_plan_order(may - self._done)
            case Phase.REPORTING:
                return self._in_plan_order(self._known - self._done)
            case Phase.OVER:
                return ()

    @property
    def may_close(self) -> bool:
        """Whether the phase or round may close; `close` is due then.

        From then on nothing more counts in it and nobody gets its model, so that its
        owner may take its time between seeing this and calling `close`.
        """
        match self._phase:
            case Phase.GATHERING:
                whole = len(self._joined) == len(self._known)
                return whole or self._has_expired_with(len(self._waiting))
            case Phase.TRAINING:
                whole = not self._open_seats and len(self._done) == len(self._seated)
                return whole or self._has_expired_with(len(self._done))
            case Phase.REPORTING:
                whole = len(self._done) == len(self._known)
                return whole or self._has_expired_with(len(self._done))
            case Phase.OVER:
                return False

    def join(self, party: str) -> None:
        """Notes that a party's node has come; again, and at any time, is fine."""
        self._check_known(party)
        self._joined.add(party)

    def wait(self, party: str) -> None:
        """Notes that one more call of the party waits for a model.

        Raises:
            RuntimeError: If the party has not joined.
        """
        self._check_known(party)
        if party not in self._joined:
            raise RuntimeError("a party joins before it waits")
        self._waiting[party] += 1

    def leave(self, party: str) -> None:
        """Notes that one call less waits: it has its model, or it is gone.

        A seat stays the party's, whoever leaves: its node may come back.

        Raises:
            RuntimeError: If no call of the party waits.
        """
        self._check_waiting(party)
        self._waiting[party] -= 1
        if not self._waiting[party]:
            del self._waiting[party]

    def take_model(self, party: str, *, after: int) -> bool:
        """Gives a call that waits the model that is out, or says that it must wait.

        In training the party must have a seat, or takes an open one, and must not have
        contributed to this round. It may take the same model again, with an earlier
        `after`: its call may have broken before the model was through. The final model
        is for everybody.

        Args:
            party: Whose call it is.
            after: The model must have a higher number than this; 0 for any.

        Raises:
            RuntimeError: If no call of the party waits.
        """
        self._check_waiting(party)
        if self._round <= after:
            return False
        if self._phase is not Phase.TRAINING:
            return self._phase is not Phase.GATHERING
        if party in self._done or self.may_close:
            return False
        if party not in self._seated:
            if not self._open_seats:
                return False
            self._open_seats -= 1
            self._seated.add(party)
        return True

    def check_offer(self, party: str, *, round_number: int) -> None:
        """Refuses an update that cannot count.

        Raises:
            ProtocolError: `no-round` before the first round; `update-late` if its round
                is closed, or may close; `update-round` if its round is yet to come;
                `update-repeated` if the party's update is counted; `update-unseated` if
                the party has no seat.
        """
        self._check_known(party)
        if self._phase is Phase.GATHERING:
            raise ProtocolError(
                "no round is running",
                code="no-round",
                expected="an update after the first model",
                remedy=ASK_AGAIN,
            )
        now, last = self._round, self._rules.rounds
        if round_number > min(now, last):
            raise refusal(
                party,
                "update-round",
                expected=f"round {now}" if now <= last else "no update any more",
                got=f"round {round_number}",
            )
        if round_number < now:
            raise late(round_number)
        if party in self._done:
            raise refusal(
                party, "update-repeated", expected="one update a round", got="another"
            )
        if party not in self._seated:
            raise refusal(
                party,
                "update-unseated",
                expected="an update of a party with a seat in the round",
                got=f"one of a party without, in round {round_number}",
                remedy="Wait for a model: it comes with a seat.",
            )
        if self.may_close:
            raise late(round_number)

    def count(self, party: str, *, round_number: int) -> None:
        """Counts a party's whole update; a call of the party must already wait.

        Raises:
            ProtocolError: As `check_offer`, whatever that said when the update began to
                come.
            RuntimeError: If no call of the party waits: it would have no part in the
                draw if this update closes the round.
        """
        self.check_offer(party, round_number=round_number)
        self._check_waiting(party)
        self._done.add(party)

    def report(self, party: str) -> bool:
        """Returns whether a party's report on the final model counts.

        One counts once. A repeated one, or one that comes when reporting may close, is
        no fault of the party's: it is told that it may go, like all others.

        Raises:
            ProtocolError: `finish-early` if training is not over.
        """
        self._check_known(party)
        if self._phase in {Phase.GATHERING, Phase.TRAINING}:
            raise ProtocolError(
                f"{party!r} finishes before training is over",
                code="finish-early",
                expected="an update",
            )
        if self._phase is Phase.OVER or party in self._done or self.may_close:
            return False
        self._done.add(party)
        return True

    def expire(self, *, round_number: int) -> None:
        """Notes that a deadline of a phase or round passed.

        One of an earlier round does nothing. With a quorum, close if the machine says
        so. Short of it, the round goes on until the quorum is reached, and each seat
        that has not contributed is given once more, so that live parties who wait can
        stand in for dead ones; those who had a seat keep it. That is so each time this
        is called: call it again after each further deadline.

        Args:
            round_number: `round` as it was when the deadline began to run.

        Raises:
            RuntimeError: If all must contribute: there is no deadline then.
        """
        if self._rules.quorum is None:
            raise RuntimeError("no deadline passes where all must contribute")
        if round_number != self._round:
            return
        self._expired = True
        if self._phase is Phase.TRAINING and not self.may_close:
            self._give_seats(self._rules.seats - len(self._done))

    def close(self) -> tuple[str, ...]:
        """Ends the phase or round, and begins the next one.

        Returns:
            Whose updates counted (in training) or whose reports (in reporting), in plan
            order; nobody for gathering.

        Raises:
            RuntimeError: If it may not close yet.
        """
        if not self.may_close:
            raise RuntimeError("a round closes when it may")
        participants = self.counted
        self._seated.clear()
        self._open_seats = 0
        self._done.clear()
        self._expired = False
        if self._phase is Phase.REPORTING:
            self._phase = Phase.OVER
            return participants
        self._round += 1
        if self._round > self._rules.rounds:
            self._phase = Phase.REPORTING
        else:
            self._phase = Phase.TRAINING
            self._begin_round()
        return participants

    def _begin_round(self) -> None:
        """Gives the seats of a round: once to a cohort that was chosen before."""
        if self._cohort:
            self._seated.update(self._cohort)
            self._cohort = ()
        else:
            self._give_seats(self._rules.seats)

    def _give_seats(self, seats: int) -> None:
        """Draws who gets the seats; with a number quorum what is left stays open."""
        rules = self._rules
        seats = min(seats, len(rules.parties) - len(self._seated))
        candidates = rules.parties if rules.quorum is None else self.waiting
        drawn = draw(
            [p for p in candidates if p not in self._seated],
            seats=seats,
            seed=rules.seed,
            round_number=self._round,
        )
        self._seated.update(drawn)
        self._open_seats = seats - len(drawn)

    def _has_expired_with(self, present: int) -> bool:
        quorum = self._rules.quorum
        return self._expired and quorum is not None and present >= quorum

    def _in_plan_order(self, names: Container[str]) -> tuple[str, ...]:
        return tuple(party for party in self._rules.parties if party in names)

    def _check_known(self, party: str) -> None:
        if party not in self._known:
            raise RuntimeError("no such worker in the plan")

    def _check_waiting(self, party: str) -> None:
        self._check_known(party)
        if party not in self._waiting:
            raise RuntimeError("no call of that party waits")
