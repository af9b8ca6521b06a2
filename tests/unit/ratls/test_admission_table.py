from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.support.federation_in_memory import START, HandClock
from tests.support.refusals import code_of

from cloister.errors import VerificationError
from cloister.plan.plan import Role
from cloister.ratls.admission_table import AdmissionTable, Admitted, Peer
from cloister.ratls.epochs import Epoch, key_digest
from cloister.ratls.identity import Spki
from cloister.ratls.proofs import Identified

LIFE = timedelta(hours=1)
TICK = timedelta(microseconds=1)
OUT_OF_DATE = VerificationError("the platform is out of date", code="tcb-status")
# To the table a key is a name; TLS has seen to the rest.
KEY, OTHER_KEY = Spki(b"key"), Spki(b"other key")


@pytest.fixture
def table(clock: HandClock) -> AdmissionTable:
    return AdmissionTable(clock)


def admitted(
    party: str = "alice",
    *,
    role: Role = "worker",
    epoch: int = 1,
    key: Spki = KEY,
    life: timedelta = LIFE,
    last_round: int = 10,
) -> Admitted:
    return Admitted(
        peer=Peer(
            role=role,
            party=party,
            epoch=epoch,
            tls_key=key,
            encryption_key=bytes(32),
            standing=Identified(party_key="ed25519:" + 64 * "0"),
        ),
        expires_at=START + life,
        last_round=last_round,
        quote=b"quote",
        report_data=bytes(64),
    )


def refusal(table: AdmissionTable, key: Spki = KEY) -> str:
    return code_of(lambda: table.check(key))


def test_an_admitted_key_speaks_for_its_party(table: AdmissionTable) -> None:
    alice, bob = admitted(), admitted("bob", key=OTHER_KEY)
    table.admit(alice)
    table.admit(bob)
    assert table.check(KEY) is alice.peer
    assert table.check(OTHER_KEY) is bob.peer
    assert table.parties() == (alice.peer, bob.peer)
    assert table.admitted() == (alice, bob)


def test_a_key_nobody_admitted_is_refused(table: AdmissionTable) -> None:
    assert refusal(table) == "not-admitted"
    assert table.parties() == ()
    assert table.admitted() == ()


def test_an_admission_lapses_to_the_second(
    table: AdmissionTable, clock: HandClock
) -> None:
    table.admit(admitted())
    clock.forward(LIFE - TICK)
    table.check(KEY)
    clock.forward(TICK)
    assert refusal(table) == "admission-lapsed"
    # It is remembered: its epoch counts, and it can be renewed.
    assert len(table.parties()) == 1


def test_an_admission_lapses_after_its_last_round(table: AdmissionTable) -> None:
    table.admit(admitted(last_round=3))
    assert table.round == 1
    for running in (2, 3):
        table.advance(running)
        table.check(KEY)
    table.advance(4)
    assert refusal(table) == "admission-lapsed"


def test_rounds_never_go_back(table: AdmissionTable) -> None:
    table.admit(admitted(last_round=3))
    table.advance(4)
    table.advance(2)
    assert table.round == 4
    assert refusal(table) == "admission-lapsed"


def test_the_refusal_says_by_what_an_admission_lapsed(
    table: AdmissionTable, clock: HandClock
) -> None:
    table.admit(admitted(last_round=3))
    table.advance(4)
    with pytest.raises(VerificationError, match="round 3"):
        table.check(KEY)
    clock.forward(LIFE)
    with pytest.raises(VerificationError, match="use before"):
        table.check(KEY)


def test_the_same_node_is_renewed(table: AdmissionTable, clock: HandClock) -> None:
    table.admit(admitted(last_round=3))
    clock.forward(LIFE / 2)
    renewed = admitted(life=2 * LIFE, last_round=20)
    table.admit(renewed)
    clock.forward(LIFE)
    table.advance(15)
    assert table.check(KEY) is renewed.peer
    assert table.admitted() == (renewed,)


def test_a_lapsed_node_is_renewed_as_well(
    table: AdmissionTable, clock: HandClock
) -> None:
    table.admit(admitted())
    clock.forward(LIFE)
    table.admit(admitted(life=2 * LIFE))
    table.check(KEY)


def test_a_renewal_may_also_shorten(table: AdmissionTable, clock: HandClock) -> None:
    """It rests on newer evidence and a newer warrant, so it counts, not the older."""
    table.admit(admitted(life=2 * LIFE))
    table.admit(admitted())
    clock.forward(LIFE)
    assert refusal(table) == "admission-lapsed"


def test_a_newer_node_puts_the_older_one_out_at_once(table: AdmissionTable) -> None:
    newer = admitted(epoch=2, key=OTHER_KEY)
    table.admit(admitted())
    table.admit(newer)
    assert refusal(table) == "not-admitted"
    assert table.parties() == (newer.peer,)


def test_a_key_that_two_parties_show_is_the_later_ones(table: AdmissionTable) -> None:
    bob = admitted("bob")
    table.admit(admitted())
    table.admit(bob)
    assert table.admitted() == (bob,)
    alice = admitted(epoch=2, key=OTHER_KEY)
    table.admit(alice)
    assert table.admitted() == (bob, alice)
    assert table.check(KEY) is bob.peer


def test_who_is_admitted_anew_is_the_last_in_order(table: AdmissionTable) -> None:
    alice, bob = admitted(), admitted("bob", key=OTHER_KEY)
    table.admit(alice)
    table.admit(bob)
    renewed = admitted(last_round=20)
    table.admit(renewed)
    assert table.admitted() == (bob, renewed)


def test_another_key_of_the_same_epoch_is_refused(table: AdmissionTable) -> None:
    first = admitted(epoch=2)
    table.admit(first)
    fork = admitted(epoch=2, key=OTHER_KEY)
    assert code_of(lambda: table.admit(fork)) == "epoch-forked"
    assert table.admitted() == (first,)
    assert refusal(table, OTHER_KEY) == "not-admitted"


def test_an_older_node_is_refused(table: AdmissionTable) -> None:
    newer = admitted(epoch=2)
    table.admit(newer)
    older = admitted(epoch=1, key=OTHER_KEY)
    assert code_of(lambda: table.admit(older)) == "epoch-old"
    assert table.admitted() == (newer,)


def test_an_old_epoch_is_refused_even_after_the_newer_one_lapsed(
    table: AdmissionTable, clock: HandClock
) -> None:
    table.admit(admitted(epoch=5))
    clock.forward(2 * LIFE)
    older = Epoch(4, key_digest(OTHER_KEY))
    assert code_of(lambda: table.check_epoch("worker", "alice", older)) == "epoch-old"


def test_a_check_alone_admits_and_remembers_nothing(table: AdmissionTable) -> None:
    table.check_epoch("worker", "alice", Epoch(5, key_digest(KEY)))
    table.admit(admitted(epoch=1, key=OTHER_KEY))
    assert refusal(table) == "not-admitted"


def test_epochs_are_counted_for_each_party_and_role(table: AdmissionTable) -> None:
    table.admit(admitted(epoch=9))
    table.admit(admitted("bob", key=OTHER_KEY))
    table.admit(admitted(role="server", key=Spki(b"third")))
    assert len(table.parties()) == 3


def test_a_withdrawn_admission_says_why(table: AdmissionTable) -> None:
    alice = admitted()
    table.admit(alice)
    table.withdraw(alice, OUT_OF_DATE)
    with pytest.raises(VerificationError) as caught:
        table.check(KEY)
    assert caught.value.code == "admission-withdrawn"
    assert caught.value.got == "tcb-status: the platform is out of date"
    assert [it.withdrawn for it in table.admitted()] == [caught.value.got]


def test_withdrawing_one_leaves_the_others(table: AdmissionTable) -> None:
    alice, bob = admitted(), admitted("bob", key=OTHER_KEY)
    table.admit(alice)
    table.admit(bob)
    table.withdraw(alice, OUT_OF_DATE)
    assert table.check(OTHER_KEY) is bob.peer


def test_a_renewal_clears_what_was_withdrawn(table: AdmissionTable) -> None:
    alice = admitted()
    table.admit(alice)
    table.withdraw(alice, OUT_OF_DATE)
    table.admit(admitted())
    table.check(KEY)


def test_evidence_that_was_renewed_meanwhile_withdraws_nothing(
    table: AdmissionTable,
) -> None:
    """The judgement on old evidence comes late: newer evidence was good."""
    old = admitted()
    table.admit(old)
    table.admit(admitted())
    table.withdraw(old, OUT_OF_DATE)
    table.check(KEY)


def test_what_is_withdrawn_twice_stays_as_it_was(table: AdmissionTable) -> None:
    alice = admitted()
    table.admit(alice)
    table.withdraw(alice, OUT_OF_DATE)
    table.withdraw(alice, VerificationError("something else", code="else"))
    with pytest.raises(VerificationError, match="out of date"):
        table.check(KEY)


def test_withdrawing_somebody_who_left_changes_nothing(table: AdmissionTable) -> None:
    former = admitted()
    table.admit(former)
    newer = admitted(epoch=2, key=OTHER_KEY)
    table.admit(newer)
    table.withdraw(former, OUT_OF_DATE)
    assert table.admitted() == (newer,)


def test_evidence_is_in_no_repr() -> None:
    line = replace(admitted(), quote=b"the whole quote")
    assert "quote" not in repr(line)


@dataclass
class Line:
    """What the model knows of a party's newest node."""

    epoch: int
    key: Spki
    expires_after: int
    last_round: int
    withdrawn: bool = False
    admitted: Admitted = field(kw_only=True)


PARTIES = ("alice", "bob")
KEYS = [Spki(bytes([number])) for number in range(4)]
numbers = st.integers(1, 4)
seconds = st.integers(1, 50)


class TableAgainstModel(RuleBasedStateMachine):
    """Everything that may happen to a table, beside a model that is plainly right."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.table = AdmissionTable(self.clock)
        self.lines: dict[str, Line] = {}
        self.now, self.round = 0, 1

    @rule(
        party=st.sampled_from(PARTIES),
        epoch=numbers,
        key=st.integers(0, 1),
        life=seconds,
        rounds=numbers,
    )
    def admit(self, party: str, epoch: int, key: int, life: int, rounds: int) -> None:
        # A key belongs to one party, as TLS keys do.
        spki = KEYS[2 * PARTIES.index(party) + key]
        line = admitted(
            party,
            epoch=epoch,
            key=spki,
            life=timedelta(seconds=self.now + life),
            last_round=self.round + rounds - 1,
        )
        known = self.lines.get(party)
        if known and (epoch, spki) != (known.epoch, known.key) and epoch <= known.epoch:
            code = "epoch-forked" if epoch == known.epoch else "epoch-old"
            assert code_of(lambda: self.table.admit(line)) == code
            return
        self.table.admit(line)
        self.lines[party] = Line(
            epoch, spki, self.now + life, self.round + rounds - 1, admitted=line
        )

    @rule(party=st.sampled_from(PARTIES))
    def withdraw(self, party: str) -> None:
        if known := self.lines.get(party):
            self.table.withdraw(known.admitted, OUT_OF_DATE)
            known.withdrawn = True

    @rule(by=seconds)
    def wait(self, by: int) -> None:
        self.now += by
        self.clock.forward(timedelta(seconds=by))

    @rule(to=st.integers(1, 12))
    def advance(self, to: int) -> None:
        self.round = max(self.round, to)
        self.table.advance(to)

    @invariant()
    def the_table_says_what_the_model_says(self) -> None:
        by_key = {line.key: (party, line) for party, line in self.lines.items()}
        for key in KEYS:
            if key not in by_key:
                assert refusal(self.table, key) == "not-admitted"
                continue
            party, line = by_key[key]
            if line.withdrawn:
                assert refusal(self.table, key) == "admission-withdrawn"
            elif self.now >= line.expires_after or self.round > line.last_round:
                assert refusal(self.table, key) == "admission-lapsed"
            else:
                peer = self.table.check(key)
                assert (peer.party, peer.epoch) == (party, line.epoch)
        assert {peer.party for peer in self.table.parties()} == set(self.lines)
        assert self.table.round == self.round


TestTableAgainstModel = TableAgainstModel.TestCase
TestTableAgainstModel.settings = settings(max_examples=60, stateful_step_count=30)
