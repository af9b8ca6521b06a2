from __future__ import annotations

import pytest

from cloister.errors import ProtocolError
from cloister.federation.rounds.cohort import draw
from cloister.federation.rounds.machine import Phase, RunMachine, RunRules

PARTIES = ("carol", "alice", "dave", "bob")


def rules(
    *,
    parties: tuple[str, ...] = PARTIES,
    seats: int | None = None,
    quorum: int | None = None,
    rounds: int = 3,
) -> RunRules:
    return RunRules(
        parties=parties,
        seats=len(parties) if seats is None else seats,
        quorum=quorum,
        rounds=rounds,
        seed=7,
    )


def gathered(of: RunRules) -> RunMachine:
    """Returns a machine in round 1, with one call of each party waiting."""
    machine = RunMachine(of)
    for party in of.parties:
        machine.join(party)
        machine.wait(party)
    assert machine.close() == ()
    return machine


def arrive(machine: RunMachine, *parties: str) -> None:
    for party in parties:
        machine.join(party)
        machine.wait(party)


def contribute(machine: RunMachine, *parties: str) -> None:
    """Each party's waiting call takes the model; its next one brings the update."""
    for party in parties:
        assert machine.take_model(party, after=machine.round - 1)
        machine.leave(party)
        machine.check_offer(party, round_number=machine.round)
        machine.wait(party)
        machine.count(party, round_number=machine.round)


def train(machine: RunMachine) -> None:
    """Has every seat contribute until training is over."""
    while machine.phase is Phase.TRAINING:
        contribute(machine, *machine.seated)
        machine.close()


def refused(machine: RunMachine, party: str, number: int) -> str:
    """Returns the code with which an update is refused, early and late alike."""
    codes = set[str]()
    for refuse in (machine.check_offer, machine.count):
        with pytest.raises(ProtocolError) as caught:
            refuse(party, round_number=number)
        codes.add(caught.value.code)
    (code,) = codes
    return code


def test_training_begins_when_everybody_has_joined() -> None:
    machine = RunMachine(rules())
    for party in PARTIES[:-1]:
        arrive(machine, party)
        assert not machine.may_close
    assert list(machine.missing) == ["bob"]
    assert not machine.take_model("carol", after=0)
    arrive(machine, "bob")
    assert not list(machine.missing)
    assert machine.close() == ()
    assert (machine.phase, machine.round) == (Phase.TRAINING, 1)


def test_a_whole_run_ends_with_everybodys_report() -> None:
    machine = gathered(rules(rounds=2))
    for number in (1, 2):
        assert machine.round == number
        contribute(machine, *reversed(PARTIES))
        assert machine.close() == PARTIES
    assert (machine.phase, machine.round) == (Phase.REPORTING, 3)
    for party in reversed(PARTIES):
        assert machine.take_model(party, after=2)
        assert not machine.may_close
        assert machine.report(party)
    assert machine.close() == PARTIES
    assert (machine.phase, machine.round) == (Phase.OVER, 3)
    assert not machine.may_close
    assert not list(machine.missing)


def test_joining_twice_is_like_joining_once() -> None:
    machine = RunMachine(rules())
    for party in PARTIES[:-1]:
        machine.join(party)
        machine.join(party)
    assert not machine.may_close
    machine.join("bob")
    assert machine.may_close


def test_a_party_waits_until_its_last_call_has_ended() -> None:
    machine = RunMachine(rules(quorum=2))
    machine.join("bob")
    machine.wait("bob")
    machine.wait("bob")
    machine.leave("bob")
    assert list(machine.waiting) == ["bob"]
    machine.leave("bob")
    assert not list(machine.waiting)
    with pytest.raises(RuntimeError):
        machine.leave("bob")


def test_two_calls_of_one_party_make_no_quorum_of_two() -> None:
    machine = RunMachine(rules(quorum=2))
    machine.join("bob")
    machine.wait("bob")
    machine.wait("bob")
    machine.expire(round_number=0)
    assert not machine.may_close
    arrive(machine, "dave")
    assert machine.may_close


def test_two_calls_of_one_party_take_one_seat_and_one_update_counts() -> None:
    machine = RunMachine(rules(seats=2, quorum=2))
    for party in PARTIES:
        machine.join(party)
    machine.close()
    arrive(machine, "bob", "bob")
    assert machine.take_model("bob", after=0)
    assert machine.take_model("bob", after=0)
    assert (machine.seated, machine.open_seats) == (("bob",), 1)
    machine.count("bob", round_number=1)
    assert refused(machine, "bob", 1) == "update-repeated"
    assert machine.counted == ("bob",)


def test_a_call_that_broke_while_the_model_came_may_ask_again() -> None:
    machine = gathered(rules())
    assert machine.take_model("bob", after=0)
    machine.leave("bob")
    arrive(machine, "bob")
    assert machine.take_model("bob", after=0)
    machine.count("bob", round_number=1)


def test_a_node_that_comes_back_after_its_update_counted_waits_for_the_next_round() -> (
    None
):
    machine = gathered(rules())
    contribute(machine, "bob")
    machine.leave("bob")
    arrive(machine, "bob")
    assert not machine.take_model("bob", after=0)
    contribute(machine, "carol", "alice", "dave")
    assert machine.close() == PARTIES
    assert machine.take_model("bob", after=0)


def test_a_call_gets_no_model_it_did_not_ask_for() -> None:
    machine = gathered(rules(rounds=1))
    assert not machine.take_model("bob", after=1)
    train(machine)
    assert not machine.take_model("bob", after=2)
    assert machine.take_model("bob", after=1)


def test_a_party_that_only_joined_gets_nothing() -> None:
    machine = gathered(rules())
    machine.leave("bob")
    with pytest.raises(RuntimeError):
        machine.take_model("bob", after=0)
    with pytest.raises(RuntimeError):
        machine.count("bob", round_number=1)
    assert machine.counted == ()


def test_a_party_cannot_wait_before_it_has_joined() -> None:
    with pytest.raises(RuntimeError):
        RunMachine(rules()).wait("bob")


def test_a_name_that_is_not_in_the_plan_is_a_bug() -> None:
    machine = gathered(rules())
    for call in (
        lambda: machine.join("eve"),
        lambda: machine.wait("eve"),
        lambda: machine.leave("eve"),
        lambda: machine.take_model("eve", after=0),
        lambda: machine.check_offer("eve", round_number=1),
        lambda: machine.count("eve", round_number=1),
        lambda: machine.report("eve"),
    ):
        with pytest.raises(RuntimeError):
            call()


@pytest.mark.parametrize(
    ("seats", "quorum", "rounds"),
    [(0, None, 1), (5, None, 1), (4, 5, 1), (3, 0, 1), (4, 4, 0)],
)
def test_rules_that_no_plan_can_have_are_a_bug(
    seats: int, quorum: int | None, rounds: int
) -> None:
    with pytest.raises(RuntimeError):
        rules(seats=seats, quorum=quorum, rounds=rounds)


def test_updates_are_refused_by_name() -> None:
    machine = RunMachine(rules(seats=2, quorum=2))
    assert refused(machine, "bob", 1) == "no-round"
    for party in PARTIES:
        machine.join(party)
    machine.wait("bob")
    machine.close()
    assert list(machine.seated) == ["bob"]
    assert refused(machine, "bob", 2) == "update-round"
    assert refused(machine, "dave", 1) == "update-unseated"
    contribute(machine, "bob")
    assert refused(machine, "bob", 1) == "update-repeated"
    arrive(machine, "dave")
    contribute(machine, "dave")
    machine.close()
    for party in PARTIES:
        assert refused(machine, party, 1) == "update-late"


def test_after_training_every_update_is_late() -> None:
    machine = gathered(rules(rounds=2))
    train(machine)
    for _ in range(2):
        assert refused(machine, "bob", 1) == "update-late"
        assert refused(machine, "bob", 2) == "update-late"
        assert refused(machine, "bob", 3) == "update-round"
        for party in PARTIES:
            machine.report(party)
        if machine.may_close:
            machine.close()
    assert machine.phase is Phase.OVER


def test_a_refusal_names_rounds_and_the_party_alone() -> None:
    machine = gathered(rules())
    with pytest.raises(ProtocolError) as caught:
        machine.check_offer("bob", round_number=2)
    assert caught.value.expected == "round 1"
    assert caught.value.got == "round 2"
    assert "'bob'" in caught.value.what


def test_nothing_counts_in_a_round_that_is_closed_or_may_close() -> None:
    machine = gathered(rules(quorum=2))
    for party in PARTIES:
        assert machine.take_model(party, after=0)
        machine.check_offer(party, round_number=1)
    machine.count("bob", round_number=1)
    machine.count("dave", round_number=1)
    machine.expire(round_number=1)
    # The deadline has passed, and its owner is about to close it.
    assert machine.may_close
    assert refused(machine, "alice", 1) == "update-late"
    assert not machine.take_model("alice", after=0)
    assert machine.close() == ("dave", "bob")
    assert refused(machine, "alice", 1) == "update-late"
    assert machine.take_model("alice", after=1)


def test_a_round_is_closed_only_when_it_may() -> None:
    machine = gathered(rules())
    contribute(machine, *PARTIES[:-1])
    with pytest.raises(RuntimeError):
        machine.close()
    assert list(machine.missing) == ["bob"]
    assert machine.round == 1


def test_where_all_must_contribute_no_deadline_passes() -> None:
    machine = gathered(rules())
    with pytest.raises(RuntimeError):
        machine.expire(round_number=1)


def test_a_deadline_before_the_quorum_closes_nothing_and_the_quorum_then_does() -> None:
    machine = gathered(rules(quorum=3))
    contribute(machine, "bob", "carol")
    machine.expire(round_number=1)
    assert not machine.may_close
    contribute(machine, "dave")
    assert machine.close() == ("carol", "dave", "bob")


def test_a_quorum_before_the_deadline_closes_nothing() -> None:
    machine = gathered(rules(quorum=2))
    contribute(machine, "bob", "carol", "dave")
    assert not machine.may_close
    contribute(machine, "alice")
    assert machine.close() == PARTIES


def test_the_deadline_of_a_former_round_says_nothing_of_this_one() -> None:
    machine = gathered(rules(quorum=2))
    contribute(machine, *PARTIES)
    machine.close()
    contribute(machine, "bob", "dave")
    machine.expire(round_number=1)
    assert not machine.may_close
    machine.expire(round_number=2)
    assert machine.may_close


def test_a_deadline_does_not_outlive_its_round() -> None:
    machine = gathered(rules(quorum=2))
    contribute(machine, "bob", "dave")
    machine.expire(round_number=1)
    machine.close()
    contribute(machine, "bob", "dave")
    assert not machine.may_close


def test_gathering_ends_at_the_deadline_if_a_quorum_waits() -> None:
    machine = RunMachine(rules(quorum=2))
    arrive(machine, "bob", "dave")
    assert not machine.may_close
    machine.expire(round_number=0)
    machine.leave("dave")
    assert not machine.may_close
    machine.wait("dave")
    assert machine.close() == ()
    assert (machine.seated, machine.open_seats) == (("dave", "bob"), 2)
    assert machine.missing == PARTIES


def test_where_nobody_waits_all_seats_are_open() -> None:
    machine = RunMachine(rules(seats=2, quorum=2))
    for party in PARTIES:
        machine.join(party)
    machine.close()
    assert (machine.seated, machine.open_seats) == ((), 2)
    arrive(machine, "dave", "alice", "bob")
    assert machine.take_model("bob", after=0)
    assert machine.take_model("alice", after=0)
    assert not machine.take_model("dave", after=0)
    assert list(machine.seated) == ["alice", "bob"]
    assert machine.open_seats == 0


def test_a_round_with_an_open_seat_waits_for_it_until_the_deadline() -> None:
    machine = RunMachine(rules(quorum=2))
    arrive(machine, "bob", "dave")
    machine.expire(round_number=0)
    machine.close()
    contribute(machine, "bob", "dave")
    assert not machine.may_close
    assert list(machine.missing) == ["carol", "alice"]
    machine.expire(round_number=1)
    assert machine.close() == ("dave", "bob")


def test_a_dead_partys_seat_stays_and_the_deadline_closes_the_round() -> None:
    machine = gathered(rules(quorum=3))
    assert machine.take_model("bob", after=0)
    machine.leave("bob")
    contribute(machine, "carol", "alice", "dave")
    assert list(machine.seated) == list(PARTIES)
    assert not machine.may_close
    machine.expire(round_number=1)
    assert machine.close() == ("carol", "alice", "dave")
    # It did not wait when the next round began; its seat is open when it comes.
    assert list(machine.seated) == ["carol", "alice", "dave"]
    arrive(machine, "bob")
    assert machine.take_model("bob", after=0)


def test_who_dies_after_its_update_counted_is_among_those_who_contributed() -> None:
    machine = gathered(rules())
    contribute(machine, "bob")
    machine.leave("bob")
    contribute(machine, "carol", "alice", "dave")
    assert machine.close() == PARTIES
    assert "bob" in machine.seated


def test_who_brings_the_last_update_of_a_round_is_in_the_next_draw() -> None:
    machine = gathered(rules(quorum=2))
    contribute(machine, *PARTIES)
    machine.close()
    assert list(machine.seated) == list(PARTIES)


def test_live_parties_stand_in_for_a_dead_cohort() -> None:
    machine = gathered(rules(seats=2, quorum=2))
    dead = machine.seated
    live = tuple(p for p in PARTIES if p not in dead)
    for party in dead:
        assert machine.take_model(party, after=0)
        machine.leave(party)
    assert not any(machine.take_model(p, after=0) for p in live)
    machine.expire(round_number=1)
    contribute(machine, *live)
    assert machine.close() == live


def test_who_had_a_seat_keeps_it_when_seats_are_given_once_more() -> None:
    machine = gathered(rules(seats=2, quorum=2))
    slow, other = machine.seated
    machine.expire(round_number=1)
    assert list(machine.seated) == list(PARTIES)
    contribute(machine, slow, other)
    stand_in = next(p for p in PARTIES if p not in {slow, other})
    # No more than there are seats: the stand-ins come too late.
    assert refused(machine, stand_in, 1) == "update-late"
    assert set(machine.close()) == {slow, other}


def test_a_seat_given_once_more_that_nobody_waits_for_stays_open() -> None:
    of = rules(seats=2, quorum=2)
    machine = gathered(of)
    first, second = machine.seated
    others = [p for p in PARTIES if p not in {first, second}]
    for party in others:
        machine.leave(party)
    contribute(machine, first)
    for _ in range(3):
        machine.expire(round_number=1)
        assert machine.open_seats == 1
    arrive(machine, others[0])
    contribute(machine, others[0])
    assert machine.may_close
    assert len(machine.close()) == 2


def test_where_everybody_has_a_seat_none_is_given_once_more() -> None:
    machine = gathered(rules(quorum=3))
    contribute(machine, "bob")
    machine.expire(round_number=1)
    assert list(machine.seated) == list(PARTIES)
    assert machine.open_seats == 0


def test_where_there_is_a_quorum_no_seat_is_given_once_more() -> None:
    machine = gathered(rules(seats=3, quorum=2))
    seated = machine.seated
    contribute(machine, *seated[:2])
    machine.expire(round_number=1)
    assert machine.seated == seated
    assert machine.close() == seated[:2]


def test_with_a_sample_of_all_who_has_no_seat_waits_for_several_rounds() -> None:
    of = rules(seats=2, rounds=40)
    machine = gathered(of)
    waited, longest = 0, 0
    while machine.phase is Phase.TRAINING:
        cohort = draw(PARTIES, seats=2, seed=of.seed, round_number=machine.round)
        assert machine.seated == cohort
        assert machine.take_model("bob", after=0) == ("bob" in cohort)
        waited = 0 if "bob" in cohort else waited + 1
        longest = max(longest, waited)
        if "bob" not in cohort:
            assert refused(machine, "bob", machine.round) == "update-unseated"
        contribute(machine, *cohort)
        assert machine.close() == cohort
    assert longest >= 3


def test_with_a_number_the_draw_is_among_those_who_wait() -> None:
    of = rules(seats=2, quorum=2)
    machine = RunMachine(of)
    for party in PARTIES:
        machine.join(party)
    for party in ("carol", "dave", "bob"):
        machine.wait(party)
    machine.close()
    assert machine.seated == draw(
        ("carol", "dave", "bob"), seats=2, seed=of.seed, round_number=1
    )


def test_who_always_comes_late_has_seats_as_often_as_the_others() -> None:
    parties = tuple(f"w{number}" for number in range(6))
    machine = gathered(rules(parties=parties, seats=3, quorum=2, rounds=400))
    late, seats_of = "w3", dict.fromkeys(parties, 0)
    while machine.phase is Phase.TRAINING:
        number = machine.round
        for party in machine.seated:
            seats_of[party] += 1
        contribute(machine, *(p for p in machine.seated if p != late))
        if late in machine.seated:
            assert machine.take_model(late, after=number - 1)
            machine.leave(late)
            machine.expire(round_number=number)
        machine.close()
        if late not in machine.waiting:
            # Too late for the draw, so it has no part in the round that has begun.
            assert refused(machine, late, number) == "update-late"
            arrive(machine, late)
            assert not machine.take_model(late, after=0)
    # It takes one round's seat and misses one draw, again and again.
    assert seats_of[late] > 400 / 2 / 2.2
    assert all(seats_of[p] > 400 / 2 * 0.8 for p in parties if p != late)


def test_who_always_comes_late_has_a_seat_each_round_where_there_is_no_sample() -> None:
    machine = gathered(rules(quorum=2, rounds=5))
    while machine.phase is Phase.TRAINING:
        number = machine.round
        assert machine.take_model("bob", after=0)
        machine.leave("bob")
        contribute(machine, "carol", "alice", "dave")
        machine.expire(round_number=number)
        assert machine.close() == ("carol", "alice", "dave")
        assert refused(machine, "bob", number) == "update-late"
        arrive(machine, "bob")
    assert machine.take_model("bob", after=0)


def test_reports_count_once_and_only_after_training() -> None:
    machine = RunMachine(rules(rounds=1))
    with pytest.raises(ProtocolError, match="before training is over") as caught:
        machine.report("bob")
    assert caught.value.code == "finish-early"
    machine = gathered(rules(rounds=1))
    with pytest.raises(ProtocolError) as caught:
        machine.report("bob")
    assert caught.value.code == "finish-early"
    train(machine)
    assert machine.report("bob")
    assert not machine.report("bob")
    assert machine.counted == ("bob",)
    assert list(machine.missing) == ["carol", "alice", "dave"]


def test_reporting_goes_on_without_the_absent_once_the_deadline_passed() -> None:
    machine = gathered(rules(quorum=2, rounds=1))
    train(machine)
    assert machine.report("bob")
    machine.expire(round_number=2)
    with pytest.raises(RuntimeError):
        machine.close()
    assert machine.report("carol")
    assert not machine.report("alice")
    assert machine.close() == ("carol", "bob")
    # Who missed the end gets the model and is told that it may go.
    assert machine.take_model("dave", after=1)
    assert not machine.report("dave")
    assert not machine.may_close


def test_a_deadline_after_the_end_says_nothing() -> None:
    machine = gathered(rules(quorum=2, rounds=1))
    train(machine)
    for party in PARTIES:
        machine.report(party)
    machine.close()
    machine.expire(round_number=2)
    assert machine.phase is Phase.OVER
    with pytest.raises(RuntimeError):
        machine.close()


@pytest.mark.parametrize("completed", [1, 2])
def test_a_run_goes_on_after_the_rounds_that_are_completed(completed: int) -> None:
    machine = RunMachine(rules(), completed=completed)
    arrive(machine, *PARTIES[:-1])
    assert (machine.phase, machine.round) == (Phase.GATHERING, completed)
    assert not machine.take_model("carol", after=0)
    assert refused(machine, "carol", completed) == "no-round"
    arrive(machine, "bob")
    assert machine.close() == ()
    assert (machine.phase, machine.round) == (Phase.TRAINING, completed + 1)
    contribute(machine, *PARTIES)
    assert machine.close() == PARTIES


def test_a_run_whose_rounds_are_all_completed_has_its_parties_report() -> None:
    machine = RunMachine(rules(rounds=3), completed=3)
    with pytest.raises(ProtocolError) as caught:
        machine.report("carol")
    assert caught.value.code == "finish-early"
    arrive(machine, *PARTIES)
    assert machine.close() == ()
    assert (machine.phase, machine.round) == (Phase.REPORTING, 4)
    for party in PARTIES:
        assert machine.take_model(party, after=0)
        assert machine.report(party)
    assert machine.close() == PARTIES
    assert machine.phase is Phase.OVER


def test_a_cohort_that_was_chosen_before_has_the_seats_of_one_round() -> None:
    of = rules(quorum=2)
    machine = RunMachine(of, completed=1, cohort=("alice", "bob"))
    arrive(machine, *PARTIES)
    machine.close()
    assert machine.seated == ("alice", "bob")
    assert machine.open_seats == 0
    assert refused(machine, "carol", 2) == "update-unseated"
    contribute(machine, "alice", "bob")
    assert machine.close() == ("alice", "bob")
    # From then on they are drawn again.
    assert len(machine.seated) == len(PARTIES)


def test_others_stand_in_for_a_cohort_that_does_not_come_back_in_time() -> None:
    machine = RunMachine(rules(quorum=2), completed=1, cohort=("alice", "bob"))
    arrive(machine, "carol", "alice")
    machine.expire(round_number=1)
    machine.close()
    contribute(machine, "alice")
    assert not machine.may_close
    machine.expire(round_number=2)
    contribute(machine, "carol")
    assert machine.close() == ("carol", "alice")


@pytest.mark.parametrize(("completed", "cohort"), [(4, ()), (-1, ()), (0, ("nobody",))])
def test_a_machine_goes_on_from_no_state_that_its_plan_cannot_have(
    completed: int, cohort: tuple[str, ...]
) -> None:
    with pytest.raises(RuntimeError):
        RunMachine(rules(quorum=2), completed=completed, cohort=cohort)
