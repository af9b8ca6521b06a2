"""The machine and one written from the specification go the same way, always.

Every event is told to both; then all they say of themselves must be equal, and what
`docs/spec/rounds.md` promises of every course of events must hold of a ledger that is
kept beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.support.naive_rounds import NaiveRun
from typing_extensions import override

from cloister.errors import ProtocolError
from cloister.federation.rounds.machine import Phase, RunMachine, RunRules

NAMES = ("mira", "bob", "zoe", "alice", "kim")


@dataclass
class Ledger:
    """What happened, as an onlooker writes it down."""

    counted: list[tuple[int, str]] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    codes: set[str] = field(default_factory=set)


class Pair:
    """The machine and the naive one, told the same."""

    def __init__(self, rules: RunRules) -> None:
        self.rules = rules
        self.machine = RunMachine(rules)
        self.naive = NaiveRun(
            list(rules.parties),
            places=rules.seats,
            quorum=rules.quorum,
            last=rules.rounds,
            seed=rules.seed,
        )
        self.ledger = Ledger()

    def join(self, party: str) -> None:
        self.machine.join(party)
        self.naive.came.append(party)

    def wait(self, party: str) -> None:
        if party not in self.naive.came:
            with pytest.raises(RuntimeError):
                self.machine.wait(party)
            return
        self.machine.wait(party)
        self.naive.calls.append(party)

    def leave(self, party: str) -> None:
        if party not in self.naive.calls:
            with pytest.raises(RuntimeError):
                self.machine.leave(party)
            return
        self.machine.leave(party)
        self.naive.calls.remove(party)

    def take(self, party: str, after: int) -> bool:
        if party not in self.naive.calls:
            with pytest.raises(RuntimeError):
                self.machine.take_model(party, after=after)
            return False
        given = self.machine.take_model(party, after=after)
        assert given == self.naive.take(party, after)
        number = self.machine.round
        if given:
            assert number > after
            assert (number, party) not in self.ledger.counted
            assert not self.machine.take_model(party, after=number)
            training = self.machine.phase is Phase.TRAINING
            assert not training or party in self.machine.seated
        return given

    def offer(self, party: str, number: int) -> bool:
        expected = self.naive.refusal_of(party, number)
        if expected is None:
            self.machine.check_offer(party, round_number=number)
            return True
        for refuse in (self.machine.check_offer, self.machine.count):
            with pytest.raises(ProtocolError) as caught:
                refuse(party, round_number=number)
            assert caught.value.code == expected
        self.ledger.codes.add(expected)
        return False

    def count(self, party: str, number: int) -> None:
        if not self.offer(party, number):
            return
        if party not in self.naive.calls:
            with pytest.raises(RuntimeError):
                self.machine.count(party, round_number=number)
            return
        self.machine.count(party, round_number=number)
        self.naive.rounds[-1].updates.append(party)
        self.ledger.counted.append((number, party))

    def report(self, party: str) -> None:
        if self.naive.phase() in {"gathering", "training"}:
            with pytest.raises(ProtocolError) as caught:
                self.machine.report(party)
            assert caught.value.code == "finish-early"
            self.ledger.codes.add(caught.value.code)
            return
        assert self.machine.report(party) == self.naive.report(party)

    def expire(self, number: int) -> None:
        if self.rules.quorum is None:
            with pytest.raises(RuntimeError):
                self.machine.expire(round_number=number)
            return
        self.machine.expire(round_number=number)
        self.naive.expire(number)

    def close(self) -> None:
        if not self.naive.may_close():
            with pytest.raises(RuntimeError):
                self.machine.close()
            return
        phase, number = self.machine.phase, self.machine.round
        seated, waiting = self.machine.seated, self.machine.waiting
        participants = self.machine.close()
        assert list(participants) == self.naive.close()
        if phase is Phase.TRAINING:
            self._look_at_closed(number, participants, seated)
        if phase is not Phase.GATHERING:
            assert number not in self.ledger.closed
            self.ledger.closed.append(number)
        training = self.machine.phase is Phase.TRAINING
        if training and len(waiting) <= self.rules.seats and self.rules.quorum:
            assert set(waiting) <= set(self.machine.seated)

    def _look_at_closed(
        self, number: int, participants: tuple[str, ...], seated: tuple[str, ...]
    ) -> None:
        rules = self.rules
        assert self.machine.round == number + 1
        assert list(participants) == sorted(participants, key=rules.parties.index)
        assert {(number, p) for p in participants} == {
            entry for entry in self.ledger.counted if entry[0] == number
        }
        assert set(participants) <= set(seated)
        if rules.quorum is None:
            assert participants == seated
            assert len(seated) == rules.seats
        else:
            assert rules.quorum <= len(participants) <= rules.seats

    def compare(self) -> None:
        machine, naive = self.machine, self.naive
        assert machine.phase.value == naive.phase()
        assert machine.round == naive.model_number()
        assert list(machine.seated) == naive.seats()
        assert machine.open_seats == naive.free_seats()
        assert list(machine.counted) == naive.counted()
        assert list(machine.waiting) == naive.waits()
        assert list(machine.missing) == naive.missing()
        assert machine.may_close == naive.may_close()
        assert len(self.ledger.counted) == len(set(self.ledger.counted))
        # While a round goes on, somebody can still bring it to its end.
        over = machine.phase is Phase.OVER
        assert over or machine.may_close or machine.missing

    def train(self, party: str) -> None:
        """What a node does when all goes well, in one go; then it waits."""
        if party not in self.naive.calls:
            self.join(party)
            self.wait(party)
        number = self.machine.round
        if self.take(party, number - 1) and self.machine.phase is Phase.TRAINING:
            self.count(party, number)


@st.composite
def all_rules(draw: st.DrawFn) -> RunRules:
    parties = NAMES[: draw(st.integers(1, len(NAMES)))]
    seats = draw(st.integers(1, len(parties)))
    return RunRules(
        parties=parties,
        seats=seats,
        quorum=draw(st.none() | st.integers(1, seats)),
        rounds=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**40)),
    )


class Courses(RuleBasedStateMachine):
    """Random courses of events; a small number chooses a party of the plan."""

    someone = st.integers(0, len(NAMES) - 1)
    near = st.sampled_from((0, 0, 0, 0, 0, -2, -1, 1))

    @initialize(
        rules=all_rules(), here=st.integers(0, len(NAMES)), dead=st.sets(someone)
    )
    def begin(self, rules: RunRules, here: int, dead: set[int]) -> None:
        self.pair = Pair(rules)
        # With a number quorum, so many may be dead from some moment on.
        may_die = len(rules.parties) - (rules.quorum or len(rules.parties))
        self.dead = {self.party(who) for who in sorted(dead)[:may_die]}
        for party in rules.parties[:here]:
            self.pair.join(party)
            self.pair.wait(party)

    def party(self, who: int) -> str:
        parties = self.pair.rules.parties
        return parties[who % len(parties)]

    @rule(who=someone)
    def a_node_joins(self, who: int) -> None:
        self.pair.join(self.party(who))

    @rule(who=someone)
    def a_call_begins_to_wait(self, who: int) -> None:
        self.pair.wait(self.party(who))

    @rule(who=someone)
    def a_call_ends(self, who: int) -> None:
        self.pair.leave(self.party(who))

    @rule(who=someone, back=st.integers(0, 3))
    def a_call_asks_for_its_model(self, who: int, back: int) -> None:
        self.pair.take(self.party(who), max(0, self.pair.machine.round - back))

    @rule(who=someone, near=near)
    def an_update_begins_to_come(self, who: int, near: int) -> None:
        self.pair.offer(self.party(who), max(1, self.pair.machine.round + near))

    @rule(who=someone, near=near)
    def an_update_is_whole(self, who: int, near: int) -> None:
        self.pair.count(self.party(who), max(1, self.pair.machine.round + near))

    @rule(who=someone)
    def a_report_comes(self, who: int) -> None:
        self.pair.report(self.party(who))

    @rule(near=near)
    def a_deadline_passes(self, near: int) -> None:
        self.pair.expire(self.pair.machine.round + near)

    @rule()
    def the_owner_closes(self) -> None:
        self.pair.close()

    @rule(absent=st.sets(someone, max_size=2))
    def all_but_a_few_do_their_part(self, absent: set[int]) -> None:
        parties = self.pair.rules.parties
        for party in parties:
            if parties.index(party) in absent:
                continue
            self.pair.train(party)
            if self.pair.machine.phase is Phase.REPORTING:
                self.pair.report(party)
            if self.pair.machine.may_close:
                self.pair.close()

    @override
    def teardown(self) -> None:
        """Whatever came before, those who are alive bring the run to its end."""
        if not hasattr(self, "pair"):
            return
        pair = self.pair
        for _ in range(4 * (pair.rules.rounds + 2)):
            for party in pair.rules.parties:
                if party not in self.dead and not pair.machine.may_close:
                    pair.train(party)
                    if pair.machine.phase is Phase.REPORTING:
                        pair.report(party)
            if pair.machine.may_close:
                pair.close()
            elif pair.rules.quorum is not None:
                pair.expire(pair.machine.round)
            pair.compare()
        assert pair.machine.phase is Phase.OVER

    @invariant()
    def both_say_the_same(self) -> None:
        self.pair.compare()


Courses.TestCase.settings = settings(max_examples=80, stateful_step_count=30)
TestCourses = Courses.TestCase


def test_random_walks_meet_every_refusal_and_reach_every_end() -> None:
    codes, ends = set[str](), set[tuple[Phase, bool]]()
    for seed in range(40):
        pair = walk(np.random.default_rng(seed))
        codes |= pair.ledger.codes
        ends.add((pair.machine.phase, pair.rules.quorum is None))
    assert codes == {
        "no-round",
        "update-late",
        "update-round",
        "update-repeated",
        "update-unseated",
        "finish-early",
    }
    assert {(Phase.OVER, True), (Phase.OVER, False)} <= ends


def walk(random: np.random.Generator) -> Pair:
    """Returns a pair after two hundred events, most of them such as lead onward."""
    parties = NAMES[: int(random.integers(2, len(NAMES) + 1))]
    seats = int(random.integers(1, len(parties) + 1))
    quorum = int(random.integers(1, seats + 1)) if random.random() < 0.5 else None
    pair = Pair(RunRules(parties=parties, seats=seats, quorum=quorum, rounds=4, seed=7))
    for _ in range(200):
        party = parties[int(random.integers(len(parties)))]
        number = pair.machine.round + int(random.choice([-1, 0, 0, 0, 0, 1]))
        match int(random.integers(8)):
            case 0 | 1:
                pair.train(party)
            case 2:
                pair.count(party, max(1, number))
            case 3:
                pair.leave(party)
            case 4:
                pair.join(party)
                pair.wait(party)
                pair.take(party, 0)
            case 5 if random.random() < 0.3:
                pair.expire(number)
            case 6:
                pair.report(party)
            case 7 if pair.machine.may_close:
                pair.close()
            case _:
                pass
        pair.compare()
    return pair
