from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.plan_tree import average, plan_tree, put, toml_of
from tests.support.whole_run import sources, task
from tests.unit.workloads.small_task import SmallTask, random_model, small_shard
from typing_extensions import override

from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.federation.local_training import (
    LocalSteps,
    LocalTraining,
    local_training,
)
from cloister.federation.model_state import BLOCK
from cloister.federation.strategies.optimizers import Sgd, Workspace
from cloister.federation.strategies.schedules import Constant, Cosine, LearningRate
from cloister.federation.task import Evaluation, Learner, LearnerSettings, StepReport
from cloister.plan.plan import parse_plan

RATE = 0.25
# More than one block, so that a step is not all of one piece.
COUNT = BLOCK + 10
LAYOUT = layout_of(
    {"w": np.zeros(COUNT - 4), "b": np.zeros(4)},
    {"mean": np.zeros(2)},
    without_decay=["b"],
)


def constant(rate: float = RATE) -> LearningRate:
    return LearningRate(peak=rate, schedule=Constant())


@dataclass(slots=True)
class Towards:
    """A learner whose gradient points from a place that depends on the step's number.

    Attributes:
        steps: The numbers of its steps.
        statistics: Those it was given before each step.
    """

    steps: list[int] = field(default_factory=list)
    statistics: list[float] = field(default_factory=list)
    held: ModelBuffer = field(default_factory=lambda: ModelBuffer(LAYOUT))

    def load(self, model: ModelBuffer) -> None:
        self.held.data[:] = model.data

    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        self.steps.append(round_number)
        self.statistics.append(float(self.held.statistics[0]))
        out.parameters[:] = self.held.parameters - place(round_number)
        out.statistics[:] = self.held.statistics + 1
        return StepReport(examples=8, loss_sum=float(round_number))

    def evaluate(self) -> Evaluation:
        raise NotImplementedError


def place(number: int) -> NDArray[np.float32]:
    return np.random.default_rng(number).standard_normal(COUNT).astype(np.float32)


def beginning() -> ModelBuffer:
    model = ModelBuffer(LAYOUT)
    model.parameters[:] = place(0)
    model.statistics[:] = (5.0, 6.0)
    return model


def trained(
    training: LocalSteps,
    learner: Learner,
    *,
    round_number: int = 1,
    model: ModelBuffer | None = None,
) -> tuple[ModelBuffer, StepReport]:
    model = beginning() if model is None else model
    out = ModelBuffer(model.layout)
    learner.load(model)
    report = training.train(round_number, model, out)
    return out, report


def towards(
    *, steps: int = 3, optimizer: Sgd | None = None, rate: LearningRate | None = None
) -> tuple[LocalTraining, Towards]:
    learner = Towards()
    training = LocalTraining(
        learner,
        beginning(),
        steps=steps,
        optimizer=optimizer or Sgd(),
        rate=rate or constant(),
    )
    return training, learner


def test_every_step_of_a_run_has_its_own_number() -> None:
    training, learner = towards(steps=3)
    trained(training, learner, round_number=1)
    trained(training, learner, round_number=4)
    assert learner.steps == [1, 2, 3, 10, 11, 12]


def test_examples_and_losses_of_all_steps_are_added() -> None:
    training, learner = towards(steps=3)
    _, report = trained(training, learner, round_number=2)
    assert report == StepReport(examples=24, loss_sum=4.0 + 5.0 + 6.0)


def test_statistics_follow_from_step_to_step_and_the_last_are_sent() -> None:
    training, learner = towards(steps=3)
    out, _ = trained(training, learner)
    assert learner.statistics == [5.0, 6.0, 7.0]
    assert out.statistics.tolist() == [8.0, 9.0]


def test_the_model_received_stays_as_it_is() -> None:
    training, learner = towards()
    model = beginning()
    trained(training, learner, model=model)
    assert model.data.tobytes() == beginning().data.tobytes()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_the_steps_are_those_of_pytorchs_sgd(
    momentum: float, weight_decay: float
) -> None:
    optimizer = Sgd(momentum=momentum, weight_decay=weight_decay)
    training, learner = towards(steps=4, optimizer=optimizer)
    out, _ = trained(training, learner)

    w, b = torch.from_numpy(place(0)[:-4].copy()), torch.from_numpy(place(0)[-4:])
    groups: list[dict[str, object]] = [
        {"params": [w]},
        {"params": [b], "weight_decay": 0.0},
    ]
    theirs = torch.optim.SGD(
        groups,
        lr=RATE,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    for number in range(1, 5):
        target = torch.from_numpy(place(number))
        w.grad, b.grad = w - target[:-4], b - target[-4:]
        theirs.step()
    moved = beginning().parameters - np.concatenate([w.numpy(), b.numpy()])
    np.testing.assert_allclose(out.parameters, moved, rtol=0, atol=2e-6)


def test_the_rate_is_the_schedules_and_the_same_in_a_whole_round() -> None:
    cosine = LearningRate(peak=RATE, schedule=Cosine(rounds=10, warmup_rounds=2))
    for number in (1, 2, 7):
        out, _ = trained(*towards(rate=cosine), round_number=number)
        same, _ = trained(
            *towards(rate=constant(cosine.at(number))), round_number=number
        )
        assert out.data.tobytes() == same.data.tobytes()
    # And not the same in all rounds.
    assert cosine.at(1) != cosine.at(2) != cosine.at(7)


def test_a_round_that_is_redone_gives_the_same_bits() -> None:
    # Nothing is left of a round: not of the same one, nor of another.
    optimizer = Sgd(momentum=0.9, weight_decay=0.01)
    training, learner = towards(optimizer=optimizer)
    first, _ = trained(training, learner, round_number=2)
    again, _ = trained(training, learner, round_number=2)
    trained(training, learner, round_number=3)
    later, _ = trained(training, learner, round_number=2)
    fresh, _ = trained(*towards(optimizer=optimizer), round_number=2)
    for other in (again, later, fresh):
        assert other.data.tobytes() == first.data.tobytes()


def test_a_model_that_diverges_is_told_by_its_values_alone() -> None:
    # Warnings are errors here; the server refuses the update by name.
    rate = constant(3e38)
    out, _ = trained(*towards(steps=4, optimizer=Sgd(momentum=0.9), rate=rate))
    assert not np.isfinite(out.parameters).all()


def softmax(party: str) -> Learner:
    settings = LearnerSettings(
        party=party, batch_size=16, seed=7, threads=1, precision="float32"
    )
    return task().learner(sources()[party], settings)


@given(rate=st.floats(1e-3, 1.0), number=st.integers(1, 50))
def test_one_local_step_and_a_server_rate_of_one_are_one_step_of_sync_sgd(
    rate: float, number: int
) -> None:
    model = task().initial_model(seed=1)
    gradients, updates, statistics = [], [], []
    for party in ("alice", "bob"):
        learner = softmax(party)
        gradient = ModelBuffer(model.layout)
        learner.load(model)
        sync = learner.step(number, gradient)
        local = LocalTraining(
            learner, model, steps=1, optimizer=Sgd(), rate=constant(rate)
        )
        update, report = trained(local, learner, round_number=number, model=model)
        assert report == sync
        gradients.append(gradient.parameters)
        updates.append(update.parameters)
        statistics.append(update.statistics.tobytes() == gradient.statistics.tobytes())
    assert all(statistics)

    def step(parts: list[NDArray[np.float32]], by: float) -> NDArray[np.float32]:
        moved = Workspace.of(Sgd(), len(model.parameters))
        Sgd().step(
            model.parameters,
            (),
            gradient=(parts[0] + parts[1]) / np.float32(2),
            decay=None,
            rate=by,
            round_number=number,
            into=moved,
        )
        return moved.parameters

    np.testing.assert_allclose(step(updates, 1.0), step(gradients, rate), atol=1e-6)


def test_a_pytorch_task_takes_local_steps_like_a_loop_of_its_own_steps() -> None:
    small, shard = SmallTask(dropout=0.5), small_shard()
    settings = LearnerSettings(
        party="alice", batch_size=8, seed=7, threads=1, precision="float32"
    )
    model = random_model(small)
    learner = small.learner(shard, settings)
    local = LocalTraining(learner, model, steps=3, optimizer=Sgd(), rate=constant(0.1))
    out, _ = trained(local, learner, round_number=2, model=model)

    own, gradient = ModelBuffer(model.layout), ModelBuffer(model.layout)
    own.data[:] = model.data
    other = small.learner(shard, settings)
    for number in (4, 5, 6):
        other.load(own)
        other.step(number, gradient)
        own.parameters[:] -= np.float32(0.1) * gradient.parameters
        own.statistics[:] = gradient.statistics
    moved = model.parameters - own.parameters
    assert out.parameters.tobytes() == moved.tobytes()
    assert out.statistics.tobytes() == own.statistics.tobytes()


@dataclass(slots=True)
class Stepping(Towards):
    """A learner that takes steps itself: by the rate, towards where the number says.

    Attributes:
        rates: The rate of each optimiser it made.
    """

    rates: list[float] = field(default_factory=list)

    def begin_steps(self, *, rate: float) -> None:
        self.rates.append(rate)

    def take_step(self, number: int) -> StepReport:
        gradient = ModelBuffer(LAYOUT)
        report = self.step(number, gradient)
        self.held.parameters[:] -= np.float32(self.rates[-1]) * gradient.parameters
        self.held.statistics[:] = gradient.statistics
        return report

    def read(self, out: ModelBuffer) -> None:
        out.data[:] = self.held.data


def tasks_own(learner: Learner, *, steps: int = 3) -> LocalSteps:
    tree = average(plan_tree())
    put(tree, ("training", "local_steps"), steps)
    put(tree, ("training", "local_optimizer"), {"name": "task", "learning_rate": 0.5})
    made = local_training(parse_plan(toml_of(tree)).training, learner, beginning())
    assert made is not None
    return made


def test_the_tasks_own_steps_have_the_plans_rate_and_the_engines_numbers() -> None:
    learner = Stepping()
    local = tasks_own(learner)
    out, report = trained(local, learner, round_number=5)
    assert learner.steps == [13, 14, 15]
    assert report == StepReport(examples=24, loss_sum=13.0 + 14.0 + 15.0)
    rate = LearningRate(peak=0.5, schedule=Cosine(rounds=12, warmup_rounds=2))
    # One optimiser for the check before the run, then one in each round.
    assert learner.rates == [rate.at(1), rate.at(5)]
    # And by SGD's hand they are those of SGD.
    same, _ = trained(*towards(rate=rate), round_number=5)
    np.testing.assert_allclose(out.parameters, same.parameters, rtol=0, atol=1e-6)
    assert out.statistics.tolist() == same.statistics.tolist()


def test_a_round_of_the_tasks_own_steps_can_be_redone() -> None:
    learner, model = Stepping(), beginning()
    local = tasks_own(learner)
    first, _ = trained(local, learner, round_number=2, model=model)
    trained(local, learner, round_number=3)
    again, _ = trained(local, learner, round_number=2, model=model)
    assert first.data.tobytes() == again.data.tobytes()
    assert model.data.tobytes() == beginning().data.tobytes()


def test_the_tasks_own_steps_that_diverge_are_told_by_their_values_alone() -> None:
    class Diverging(Stepping):
        @override
        def read(self, out: ModelBuffer) -> None:
            out.parameters.fill(np.inf)

    learner = Diverging()
    model = beginning()
    model.parameters.fill(np.inf)
    out, _ = trained(tasks_own(learner), learner, model=model)
    assert np.isnan(out.parameters).all()


def test_a_task_without_the_optimiser_that_the_plan_wants_is_refused_at_once() -> None:
    small = SmallTask()
    settings = LearnerSettings(
        party="alice", batch_size=8, seed=7, threads=1, precision="float32"
    )
    for learner in (Towards(), small.learner(small_shard(), settings)):
        with pytest.raises(ConfigError) as caught:
            tasks_own(learner)
        assert caught.value.code == "task-optimizer"


def test_a_plan_says_whether_there_are_local_steps_and_which() -> None:
    sync = parse_plan(toml_of(plan_tree())).training
    assert local_training(sync, Towards(), beginning()) is None

    tree = average(plan_tree())
    put(tree, ("training", "local_steps"), 2)
    settings = {"learning_rate": 0.5, "momentum": 0.9, "weight_decay": 0.01}
    put(tree, ("training", "local_optimizer"), dict(settings))
    learner = Towards()
    made = local_training(parse_plan(toml_of(tree)).training, learner, beginning())
    assert made is not None
    out, _ = trained(made, learner, round_number=5)
    assert learner.steps == [9, 10]
    # Of the plan's schedule, a cosine after two rounds of warm-up.
    rate = LearningRate(peak=0.5, schedule=Cosine(rounds=12, warmup_rounds=2))
    optimizer = Sgd(momentum=0.9, weight_decay=0.01)
    same, _ = trained(*towards(steps=2, optimizer=optimizer, rate=rate), round_number=5)
    assert out.data.tobytes() == same.data.tobytes()
