"""A second state machine of a run, written from `docs/spec/rounds.md` alone.

It is slow and simple on purpose: plain lists, one record for each round, and every
answer worked out anew from them. It shares nothing with `cloister.federation.rounds`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass
class NaiveRound:
    """Everything that was ever true of one round."""

    number: int
    free: int = 0
    seats: list[str] = field(default_factory=list)
    updates: list[str] = field(default_factory=list)
    deadline_passed: bool = False


class NaiveRun:
    """A run by the book."""

    def __init__(
        self,
        plan: list[str],
        *,
        places: int,
        quorum: int | None,
        last: int,
        seed: int,
    ) -> None:
        self.plan = plan
        self.places = places
        self.quorum = quorum
        self.last = last
        self.seed = seed
        self.came: list[str] = []
        self.calls: list[str] = []  # one entry for each open call, oldest first
        self.reports: list[str] = []
        self.rounds: list[NaiveRound] = []
        self.gathering_expired = False
        self.reporting_expired = False
        self.ended = False

    # What is so now.

    def phase(self) -> str:
        if self.ended:
            return "over"
        if not self.rounds:
            return "gathering"
        return "reporting" if self.rounds[-1].number > self.last else "training"

    def model_number(self) -> int:
        return len(self.rounds)

    def waits(self) -> list[str]:
        return [name for name in self.plan if name in self.calls]

    def seats(self) -> list[str]:
        if self.phase() != "training":
            return []
        return [name for name in self.plan if name in self.rounds[-1].seats]

    def free_seats(self) -> int:
        return self.rounds[-1].free if self.phase() == "training" else 0

    def counted(self) -> list[str]:
        done = {
            "gathering": [],
            "training": self.rounds[-1].updates if self.rounds else [],
            "reporting": self.reports,
            "over": [],
        }[self.phase()]
        return [name for name in self.plan if name in done]

    def missing(self) -> list[str]:
        phase = self.phase()
        if phase == "gathering":
            return [name for name in self.plan if name not in self.came]
        if phase == "reporting":
            return [name for name in self.plan if name not in self.reports]
        if phase == "over":
            return []
        now = self.rounds[-1]
        return [
            name
            for name in self.plan
            if name not in now.updates and (now.free > 0 or name in now.seats)
        ]

    def may_close(self) -> bool:
        phase = self.phase()
        if phase == "over":
            return False
        if phase == "gathering":
            everybody = all(name in self.came for name in self.plan)
            expired, present = self.gathering_expired, len(self.waits())
        elif phase == "training":
            now = self.rounds[-1]
            everybody = now.free == 0 and all(n in now.updates for n in now.seats)
            expired, present = now.deadline_passed, len(now.updates)
        else:
            everybody = all(name in self.reports for name in self.plan)
            expired, present = self.reporting_expired, len(self.reports)
        if self.quorum is None:
            return everybody
        return everybody or (expired and present >= self.quorum)

    # What happens.

    def take(self, name: str, after: int) -> bool:
        phase = self.phase()
        if phase == "gathering" or self.model_number() <= after:
            return False
        if phase in {"reporting", "over"}:
            return True
        now = self.rounds[-1]
        if name in now.updates or self.may_close():
            return False
        if name not in now.seats:
            if now.free == 0:
                return False
            now.free -= 1
            now.seats.append(name)
        return True

    def refusal_of(self, name: str, number: int) -> str | None:
        """Returns the first row of the table of refusals that holds."""
        phase = self.phase()
        if phase == "gathering":
            return "no-round"
        if phase == "training":
            now = self.rounds[-1]
            rows = [
                (number > now.number, "update-round"),
                (number < now.number, "update-late"),
                (name in now.updates, "update-repeated"),
                (name not in now.seats, "update-unseated"),
                (self.may_close(), "update-late"),
            ]
        else:
            rows = [(number > self.last, "update-round"), (True, "update-late")]
        return next((code for holds, code in rows if holds), None)

    def report(self, name: str) -> bool:
        if self.phase() == "over" or name in self.reports or self.may_close():
            return False
        self.reports.append(name)
        return True

    def expire(self, number: int) -> None:
        if number != self.model_number():
            return
        phase = self.phase()
        if phase == "gathering":
            self.gathering_expired = True
        elif phase == "reporting":
            self.reporting_expired = True
        elif phase == "training":
            now = self.rounds[-1]
            now.deadline_passed = True
            if not self.may_close():
                without = [name for name in self.plan if name not in now.seats]
                again = min(self.places - len(now.updates), len(without))
                chosen = self.lowest(
                    [name for name in self.waits() if name in without], again
                )
                now.seats += chosen
                now.free = again - len(chosen)

    def close(self) -> list[str]:
        phase, done = self.phase(), self.counted()
        if phase == "reporting":
            self.ended = True
            return done
        begun = NaiveRound(number=len(self.rounds) + 1)
        self.rounds.append(begun)
        if begun.number <= self.last:
            drawn_among = self.plan if self.quorum is None else self.waits()
            begun.seats = self.lowest(drawn_among, self.places)
            begun.free = self.places - len(begun.seats)
        return done

    def lowest(self, names: list[str], how_many: int) -> list[str]:
        """Returns the names of lowest rank, found one by one."""
        left, chosen = list(names), list[str]()
        while left and len(chosen) < how_many:
            best = min(left, key=lambda n: rank(n, self.seed, len(self.rounds)))
            left.remove(best)
            chosen.append(best)
        return chosen


def rank(name: str, seed: int, number: int) -> str:
    """Returns a name's rank in a round, with the CBOR spelled out."""
    array = bytes([0x84])
    return hashlib.sha256(
        array + _text("cloister/cohort/1") + _number(seed) + _number(number)
        + _text(name)
    ).hexdigest()  # fmt: skip


def _text(text: str) -> bytes:
    raw = text.encode()
    assert len(raw) < 24
    return bytes([0x60 + len(raw)]) + raw


def _number(number: int) -> bytes:
    if number < 24:
        return bytes([number])
    for lead, size in ((0x18, 1), (0x19, 2), (0x1A, 4), (0x1B, 8)):
        if number < 256**size:
            return bytes([lead]) + number.to_bytes(size, "big")
    raise AssertionError("no plan has such a number")
