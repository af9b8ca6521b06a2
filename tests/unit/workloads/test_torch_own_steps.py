"""Local steps that a PyTorch task takes with an optimiser of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from tests.support.engine_in_memory import plan_for, train
from tests.support.plan_tree import Tree
from tests.unit.workloads.small_task import (
    PointBatches,
    SmallTask,
    random_model,
    settings,
    small_shard,
)
from torch import nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer
from cloister.federation.sampling import Sampler
from cloister.federation.task import (
    StepReport,
)
from cloister.storage.raw_shard import RawRecords, RawShard
from cloister.workloads.torch_model import seeded

Batch = tuple[torch.Tensor, ...]
Make = Callable[[Sequence[nn.Parameter], float], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "momentum": lambda p, rate: torch.optim.SGD(p, lr=rate, momentum=0.9),
    "adamw": lambda p, rate: torch.optim.AdamW(p, lr=rate),
    "lbfgs": lambda p, rate: torch.optim.LBFGS(p, lr=rate, max_iter=3),
}


class OwnSteps(SmallTask):
    """A task with an optimiser."""

    def __init__(self, make: Make, *, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self._make = make

    @override
    def optimizer(
        self, parameters: Sequence[nn.Parameter], rate: float
    ) -> torch.optim.Optimizer:
        return self._make(parameters, rate)


def three_steps(task: SmallTask, model: ModelBuffer) -> tuple[ModelBuffer, StepReport]:
    learner = task.learner(small_shard(), settings())
    learner.load(model)
    learner.begin_steps(rate=0.05)
    for number in (4, 5):
        learner.take_step(number)
    report = learner.take_step(6)
    out = ModelBuffer(model.layout)
    learner.read(out)
    return out, report


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_own_steps_are_exactly_those_of_a_plain_loop(name: str) -> None:
    task = OwnSteps(OPTIMIZERS[name])
    out, report = three_steps(task, task.initial_model(seed=7))

    with seeded(7):
        plain = task.model().train()
    optimizer = OPTIMIZERS[name](list(plain.parameters()), 0.05)
    sampler = Sampler(examples=20, batch_size=8, seed=7, party="alice")
    data = PointBatches(small_shard().split("train"), noise=0.1)
    loss = torch.zeros(())
    for number in (4, 5, 6):
        generator = sampler.augmentation(number)
        generator.integers(2**63)  # the seed of dropout
        points, labels = data.batch(sampler.indices(number), generator)
        optimizer.zero_grad()
        loss = cross_entropy(plain(points), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    assert report == StepReport(examples=8, loss_sum=loss.item() * 8)
    for parameter_name, parameter in plain.named_parameters():
        own = out.arrays()[parameter_name]
        assert np.array_equal(own, parameter.detach().numpy())
    variance = plain.state_dict()["1.running_var"].double().numpy()
    mean = plain.state_dict()["1.running_mean"].double().numpy()
    assert np.array_equal(out.arrays()["1.running_second_moment"], variance + mean**2)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_own_steps_redone_give_the_same_bits(name: str) -> None:
    task = OwnSteps(OPTIMIZERS[name], dropout=0.5)
    model = random_model(task)
    first, report = three_steps(task, model)
    torch.rand(3)
    again, same = three_steps(task, model)
    assert report == same
    assert np.array_equal(first.data, again.data)
    assert not np.array_equal(first.parameters, model.parameters)


def test_an_optimiser_that_looks_twice_sees_the_same_loss() -> None:
    class Twice(torch.optim.SGD):
        @override
        def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
            assert closure is not None
            seen.extend((closure(), closure()))

    seen: list[float] = []
    task = OwnSteps(Twice, dropout=0.5)
    three_steps(task, random_model(task))
    assert seen[0::2] == seen[1::2]


def test_workers_with_an_optimiser_of_their_own_learn_together() -> None:
    section: Tree = {
        "mode": "fedavg",
        "rounds": 12,
        "batch_size": 20,
        "seed": 7,
        "schedule": {"name": "constant"},
        "local_steps": 3,
        "local_optimizer": {"name": "task", "learning_rate": 0.02},
        "optimizer": {"name": "sgd", "learning_rate": 1.0},
    }
    plan = plan_for(2, section)
    task = OwnSteps(OPTIMIZERS["adamw"])
    # Points whose largest coordinate is their class.
    sources = {party.name: largest_coordinate() for party in plan.workers}
    outcome = train(plan, task, sources)
    assert outcome.losses[-1] < 0.6 * outcome.losses[0]
    # Each round's optimiser is new, so the run is a function of the plan.
    assert np.array_equal(outcome.model.data, train(plan, task, sources).model.data)


def largest_coordinate() -> RawShard:
    shard = small_shard(train=80)
    columns = shard.split("train").read(np.arange(80))
    label = np.asarray(columns["point"], np.float32)[:, :3].argmax(axis=1)
    train = RawRecords({**columns, "label": label.astype(np.uint8)})
    return RawShard({"train": train, "held-out": shard.split("held-out")}, "sha256:")


def test_a_step_and_an_own_step_have_one_gradient() -> None:
    # An own step that is plain SGD moves by what `step` says.
    task = OwnSteps(lambda p, rate: torch.optim.SGD(p, lr=rate), dropout=0.5)
    model = random_model(task)
    learner = task.learner(small_shard(), settings())
    gradient, moved = ModelBuffer(model.layout), ModelBuffer(model.layout)
    learner.load(model)
    report = learner.step(9, gradient)
    learner.begin_steps(rate=0.5)
    assert learner.take_step(9) == report
    learner.read(moved)
    expected = model.parameters - np.float32(0.5) * gradient.parameters
    np.testing.assert_allclose(moved.parameters, expected, rtol=0, atol=1e-7)
    assert np.array_equal(moved.statistics, gradient.statistics)


def test_frozen_parameters_are_not_given_to_the_optimiser() -> None:
    class Frozen(OwnSteps):
        @override
        def model(self) -> nn.Module:
            module = super().model()
            next(module.children()).requires_grad_(requires_grad=False)
            return module

    task = Frozen(OPTIMIZERS["adamw"])
    model = random_model(task)
    out, _ = three_steps(task, model)
    for name in ("0.weight", "0.bias"):
        assert np.array_equal(out.arrays()[name], model.arrays()[name])
    assert not np.array_equal(out.arrays()["4.weight"], model.arrays()["4.weight"])


class NeverLooks(torch.optim.SGD):
    @override
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        return


@pytest.mark.parametrize(
    "make",
    [lambda *_: "adam", lambda p, rate: NeverLooks(p, lr=rate)],
    ids=["no optimiser", "one that never looks"],
)
def test_what_is_no_optimiser_is_refused(make: Make) -> None:
    task = OwnSteps(make)
    with pytest.raises(ConfigError) as caught:
        three_steps(task, random_model(task))
    assert caught.value.code == "task-optimizer"


def test_a_task_without_an_optimiser_says_so() -> None:
    task = SmallTask()
    with pytest.raises(ConfigError, match="SmallTask") as caught:
        three_steps(task, random_model(task))
    assert caught.value.code == "task-optimizer"
