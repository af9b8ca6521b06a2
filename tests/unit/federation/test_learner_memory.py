"""What a learner keeps from round to round, and goes on from after a death."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.federation_in_memory import Federation
from typing_extensions import override

from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.federation.layout import ModelBuffer
from cloister.federation.learner_arrays import arrays_of, specs_of
from cloister.federation.learner_memory import LearnerMemory
from cloister.federation.task import Evaluation, StatefulLearner, StepReport
from cloister.plan.digest import format_digest
from cloister.plan.plan import Plan, Predecessor, plan_hash
from cloister.storage.keys import Secret
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.mirror.subject import MirrorPlace, Subject


class Counting(StatefulLearner):
    """A learner that has nothing but a state: it says what it did in every round."""

    def __init__(self) -> None:
        self.done = np.zeros(8, np.int64)
        self.restored = 0

    @override
    def load(self, model: ModelBuffer) -> None:
        raise AssertionError

    @override
    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        raise AssertionError

    @override
    def evaluate(self) -> Evaluation:
        raise AssertionError

    @override
    def state(self) -> Mapping[str, NDArray[np.generic]]:
        return {"done": self.done, "sum": self.done.sum()[...]}

    @override
    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self.done[:] = arrays["done"]
        assert arrays["sum"] == self.done.sum()
        self.restored += 1


def plan_with(federation: Federation, **rounds: object) -> Plan:
    changed = msgspec.structs.replace(federation.plan.rounds, **rounds)
    return msgspec.structs.replace(federation.plan, rounds=changed)


@pytest.fixture
def place(federation: Federation, tmp_path: Path) -> MirrorPlace:
    return place_in(tmp_path, federation.plan)


def place_in(directory: Path, plan: Plan) -> MirrorPlace:
    return MirrorPlace(
        path=directory / "alice.mirror",
        key=Secret(bytes(range(32))),
        subject=Subject(
            run_id=plan.run_id,
            plan_hash=plan_hash(plan),
            role="worker",
            party="alice",
        ),
    )


def memory_of(
    learner: StatefulLearner,
    place: MirrorPlace,
    plan: Plan,
    *,
    former: MirrorPlace | None = None,
) -> LearnerMemory:
    return LearnerMemory(
        learner, place, former=former, plan=plan, guard=lambda _: nullcontext()
    )


class Process:
    """A worker's process, as far as its memory goes; a new one has a new learner."""

    def __init__(
        self, place: MirrorPlace, plan: Plan, *, former: MirrorPlace | None = None
    ) -> None:
        self.learner = Counting()
        self.memory = memory_of(self.learner, place, plan, former=former)

    def train(self, *rounds: int) -> list[int]:
        """Trains rounds; returns what the learner did until now, in order."""
        return self.train_each(1, *rounds)

    def train_each(self, times: int, *rounds: int) -> list[int]:
        """Trains rounds, of each of which something else comes the more often."""
        for number in rounds:
            self.memory.begin(number)
            self.learner.done[number - 1] += times
            self.memory.end(number)
        return self.did()

    def did(self) -> list[int]:
        return [int(times) for times in self.learner.done]


Start = Callable[..., Process]


@pytest.fixture
def start(federation: Federation, place: MirrorPlace) -> Iterator[Start]:
    """Starts a process at the place where the one before it has died."""
    running: list[Process] = []

    def begin(**rounds: object) -> Process:
        for former in running:
            former.memory.close()
        running[:] = [Process(place, plan_with(federation, **rounds))]
        return running[0]

    yield begin
    for process in running:
        process.memory.close()


NUMBER = {"quorum": 2, "deadline_seconds": 60}


def test_a_process_goes_on_where_the_one_before_it_died(start: Start) -> None:
    assert start().train(1, 2, 3) == [1, 1, 1, 0, 0, 0, 0, 0]
    again = start()
    assert again.train(4) == [1, 1, 1, 1, 0, 0, 0, 0]
    assert again.learner.restored == 1


def test_what_goes_on_in_one_process_is_never_read_back(start: Start) -> None:
    process = start()
    process.train(1, 2, 3, 4)
    assert process.learner.restored == 0


@pytest.mark.parametrize("interval", [1, 3])
def test_rounds_are_done_again_from_as_far_back_as_a_server_can_ask(
    start: Start, interval: int
) -> None:
    """Again and again: what is done again costs no state from before it."""
    process = start(mirror_every=interval)
    process.train(1, 2, 3, 4, 5, 6)
    oldest = 6 - interval
    for _ in range(3):
        assert process.train(oldest)[oldest - 1 :] == [1] + (8 - oldest) * [0]
        again = process = start(mirror_every=interval)
        again.train(*range(oldest, 7))
        assert again.did() == [1, 1, 1, 1, 1, 1, 0, 0]
    with pytest.raises(StorageError) as caught:
        process.memory.begin(oldest - 1)
    assert caught.value.code == "learner-state-missing"
    assert f"round {oldest - 2}" in caught.value.expected


def test_the_model_is_evaluated_with_the_state_that_belongs_to_it(start: Start) -> None:
    start().train(1, 2)
    fresh = start()
    fresh.memory.begin(3)
    fresh.memory.begin(3)
    assert fresh.did() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert fresh.learner.restored == 1


def test_where_everybody_has_a_seat_no_round_may_be_missing_in_a_state(
    start: Start, place: MirrorPlace
) -> None:
    start().train(1, 2)
    with pytest.raises(StorageError) as caught:
        start().memory.begin(4)
    error = caught.value
    assert error.code == "learner-state-missing"
    assert error.got == "states after rounds 2, 1, 0"
    # As where a host took the file away, or put one back.
    place.path.unlink()
    with pytest.raises(StorageError):
        start().memory.begin(3)


def test_where_rounds_go_on_without_some_the_newest_state_before_a_round_counts(
    start: Start, place: MirrorPlace
) -> None:
    assert start(**NUMBER).train(2, 5) == [0, 1, 0, 0, 1, 0, 0, 0]
    again = start(**NUMBER)
    assert again.train(5) == [0, 1, 0, 0, 1, 0, 0, 0]
    assert again.train(8) == [0, 1, 0, 0, 1, 0, 0, 1]
    # A worker that joins late, or on a new disk.
    again.memory.close()
    place.path.unlink()
    assert start(**NUMBER).train(8) == [0, 0, 0, 0, 0, 0, 0, 1]


def test_a_round_that_was_not_done_the_last_time_takes_the_place_of_what_came_later(
    start: Start,
) -> None:
    process = start(**NUMBER)
    process.train(2, 6)
    process.train(4)
    assert process.did() == [0, 1, 0, 1, 0, 0, 0, 0]
    assert process.train(6) == [0, 1, 0, 1, 0, 1, 0, 0]
    assert start(**NUMBER).train(7) == [0, 1, 0, 1, 0, 1, 1, 0]


@pytest.mark.parametrize("interval", [1, 3])
def test_a_round_that_comes_out_otherwise_is_kept_as_it_was_the_last_time(
    start: Start, place: MirrorPlace, interval: int
) -> None:
    """As where another worker sends something else: again and again, from far back."""
    process = start(mirror_every=interval)
    process.train(1, 2, 3, 4, 5, 6)
    oldest = 6 - interval
    before = [1] * (oldest - 1)
    for times in range(2, 6):
        process.train_each(times, *range(oldest, 7))
        again = start(mirror_every=interval)
        again.memory.begin(7)
        assert again.did() == [*before, *[times] * (interval + 1), 0, 0]
        # Nor is a state lost that the next server may ask for.
        process = again
        if times == 3:
            reseal_oldest(process, place)
            process = start(mirror_every=interval)
    process.memory.begin(oldest)
    assert process.did() == [*before, *[0] * (8 - len(before))]


def reseal_oldest(process: Process, place: MirrorPlace) -> None:
    """Leaves what a process leaves that dies while it makes room for a state."""
    process.memory.close()
    specs = specs_of(arrays_of(process.learner.state()))
    slots = process.memory._slots
    with closing(StateMirror.open(place, specs, slots=slots)) as mirror:
        oldest = mirror.kept[-1]
        arrays = {it.name: np.empty(it.shape, it.dtype) for it in specs}
        mirror.restore(oldest, arrays)
        mirror.seal(oldest.round, arrays, oldest.counters)
        mirror.commit()


def test_a_learner_that_begins_otherwise_each_time_begins_as_it_first_did(
    place: MirrorPlace, federation: Federation
) -> None:
    class Odd(Counting):
        def __init__(self, first: int) -> None:
            super().__init__()
            self.done[7] = first

    for first in (5, 6):
        learner = Odd(first)
        with closing(memory_of(learner, place, federation.plan)) as memory:
            memory.begin(1)
            assert (learner.done[7], learner.restored) == (5, first - 5)


def test_a_death_between_training_and_the_end_leaves_the_state_before(
    start: Start,
) -> None:
    process = start()
    process.train(1)
    process.memory.begin(2)
    process.learner.done[1] += 1
    assert start().train(2) == [1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"done": [1, 2]},
        {1: np.zeros(2)},
        {"done": np.array(["a"])},
        {"done": np.array([None])},
    ],
)
def test_a_state_that_is_not_arrays_of_numbers_is_refused_at_once(
    federation: Federation, place: MirrorPlace, state: dict[str, NDArray[np.generic]]
) -> None:
    class Odd(Counting):
        @override
        def state(self) -> Mapping[str, NDArray[np.generic]]:
            return state

    with pytest.raises(ConfigError) as caught:
        memory_of(Odd(), place, federation.plan)
    assert caught.value.code in {"task-state", "mirror-arrays"}
    assert not place.path.exists()


def test_a_state_that_changes_its_form_is_the_tasks_fault(start: Start) -> None:
    process = start()
    process.memory.begin(1)
    process.learner.done = np.zeros(9, np.int64)
    with pytest.raises(ConfigError) as caught:
        process.memory.end(1)
    assert caught.value.code == "task-state"


def test_another_nodes_states_are_not_taken(
    federation: Federation, place: MirrorPlace, start: Start
) -> None:
    start().train(1)
    start().memory.close()
    for change in ({"party": "bob"}, {"run_id": "another"}, {"plan_hash": bytes(32)}):
        subject = msgspec.convert(
            {**msgspec.to_builtins(place.subject), **change}, Subject
        )
        with pytest.raises(CloisterError) as caught:
            memory_of(
                Counting(),
                MirrorPlace(path=place.path, key=place.key, subject=subject),
                federation.plan,
            )
        assert caught.value.code == "mirror-foreign"


def amended(plan: Plan, *, after: int) -> Plan:
    """The plan that takes over a plan's run after so many rounds."""
    before = Predecessor(
        plan=format_digest(plan_hash(plan)), state=format_digest(bytes(32)), round=after
    )
    return msgspec.structs.replace(plan, predecessor=before)


def test_an_amended_plan_goes_on_from_the_state_of_the_round_it_names(
    federation: Federation, place: MirrorPlace, tmp_path: Path, start: Start
) -> None:
    start().train(1, 2, 3)
    start().memory.close()
    # The third round was trained, and the server never completed it.
    plan = amended(federation.plan, after=2)
    own = dataclasses.replace(place_in(tmp_path / "next", plan), key=place.key)
    own.path.parent.mkdir()
    for _ in range(2):
        process = Process(own, plan, former=place)
        with closing(process.memory):
            assert process.train(3) == [1, 1, 1, 0, 0, 0, 0, 0]


def test_a_learner_whose_former_state_is_gone_does_not_begin_anew(
    federation: Federation, place: MirrorPlace, tmp_path: Path
) -> None:
    plan = amended(federation.plan, after=2)
    process = Process(place_in(tmp_path, plan), plan, former=place)
    with closing(process.memory), pytest.raises(StorageError) as caught:
        process.train(3)
    assert caught.value.code == "learner-state-missing"


def test_nothing_of_a_state_lies_in_the_clear(
    federation: Federation, place: MirrorPlace
) -> None:
    process = Process(place, federation.plan)
    with closing(process.memory):
        process.learner.done[:] = int.from_bytes(b"KANARIEN", "little")
        process.memory.end(1)
    assert b"KANARIEN" not in place.path.read_bytes()
