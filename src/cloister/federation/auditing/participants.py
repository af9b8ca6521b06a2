"""Who took part in the rounds of a run's log, held against the plan's rule.

A part of steps 7 and 8 of `audit_verification`. The rule comes from the plan alone: no
word of the server's decides who had to be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from cloister.errors import VerificationError
from cloister.federation.auditing.report import Attendance
from cloister.federation.rounds.cohort import draw
from cloister.plan.plan import Plan

# A thousand names are no message.
_LIST_CHARACTERS = 600


class Participants:
    """Knows who must take part in a round, and follows who did.

    Args:
        plan: The run's plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._names = tuple(party.name for party in plan.workers)
        self._places = {name: place for place, name in enumerate(self._names)}
        # One bit for each worker: a run may have many rounds of many workers.
        self._took_part: dict[int, int] = {}

    def check_round(
        self, unverified: Sequence[str], *, round_number: int
    ) -> Sequence[str]:
        """Returns the parties whose updates counted, if the plan lets these be all.

        With ``quorum = "all"`` they are exactly those with a seat: all workers, or the
        cohort that the plan's seed draws for this round. With a number they are some
        workers, each once and in the plan's order; as many as the quorum at least, and
        as there are seats at most. Who came late or had no seat then depends on who was
        there, which only the server knows.

        Raises:
            VerificationError: If they are others.
        """
        plan = self._plan
        what = f"took part in round {round_number}"
        if plan.rounds.quorum == "all":
            drawn = draw(
                self._names,
                seats=plan.seats,
                seed=plan.training.seed,
                round_number=round_number,
            )
            return _check_exactly(unverified, drawn, what=what)
        return self._check_some(
            unverified, least=plan.rounds.quorum, most=plan.seats, what=what
        )

    def check_reports(self, unverified: Sequence[str]) -> Sequence[str]:
        """Returns the parties that reported on the final model, likewise.

        It goes to all workers, whoever had a seat before.

        Raises:
            VerificationError: If others had to.
        """
        quorum, what = self._plan.rounds.quorum, "reported at the end"
        if quorum == "all":
            return _check_exactly(unverified, self._names, what=what)
        return self._check_some(
            unverified, least=quorum, most=len(self._names), what=what
        )

    def note(self, parties: Iterable[str], *, round_number: int) -> None:
        """Notes who took part in a round, when all of it held."""
        bits = 0
        for name in parties:
            bits |= 1 << self._places[name]
        self._took_part[round_number] = bits

    def forget_after(self, completed: int) -> None:
        """Forgets the rounds that a server began without: they are done again."""
        for lost in [number for number in self._took_part if number > completed]:
            del self._took_part[lost]

    @property
    def attendance(self) -> Attendance:
        """Who took part in the rounds that count, as far as the log goes."""
        rounds = Counter(self._took_part.values())
        sizes = [bits.bit_count() for bits in rounds]
        return Attendance(
            rounds=len(self._took_part),
            least=min(sizes, default=0),
            most=max(sizes, default=0),
            by_party={
                name: sum(times for bits, times in rounds.items() if bits >> place & 1)
                for place, name in enumerate(self._names)
            },
        )

    def _check_some(
        self, unverified: Sequence[str], *, least: int, most: int, what: str
    ) -> Sequence[str]:
        places = [self._places.get(name, -1) for name in unverified]
        if any(
            later <= earlier
            for earlier, later in zip([-1, *places], places, strict=False)
        ):
            raise _others(
                f"who {what} is no list of workers, each once and in the plan's order",
                expected=f"some of {_listed(self._names)}",
                got=_listed(unverified),
            )
        if not least <= len(unverified) <= most:
            raise _others(
                f"more or fewer workers {what} than the plan allows",
                expected=f"{least} to {most} workers",
                got=f"{len(unverified)}: {_listed(unverified)}",
            )
        return unverified


def _check_exactly(
    unverified: Sequence[str], wanted: tuple[str, ...], *, what: str
) -> Sequence[str]:
    if tuple(unverified) != wanted:
        raise _others(
            f"not every worker {what} that had to, each once",
            expected=_listed(wanted),
            got=_listed(unverified),
        )
    return unverified


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(names) or "nobody"
    if len(listed) <= _LIST_CHARACTERS:
        return listed
    return f"{listed[:_LIST_CHARACTERS]}... ({len(names)})"


def _others(what: str, *, expected: str, got: str) -> VerificationError:
    return VerificationError(
        what, code="audit-participants", expected=expected, got=got
    )
