from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tests.unit.workloads.small_task import (
    PRECISIONS,
    PointBatches,
    SmallTask,
    random_model,
    settings,
    small_shard,
)
from torch import nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from cloister.errors import ConfigError, StorageError
from cloister.federation.layout import ModelBuffer
from cloister.federation.sampling import Sampler
from cloister.federation.task import Evaluation, Precision, StepReport
from cloister.workloads.batches import EVALUATION_BATCH
from cloister.workloads.torch import TorchTask
from cloister.workloads.torch_model import seeded

Batch = tuple[torch.Tensor, ...]


def one_step(
    task: TorchTask[Batch],
    model: ModelBuffer,
    *,
    round_number: int = 3,
    party: str = "alice",
) -> tuple[StepReport, ModelBuffer]:
    learner = task.learner(small_shard(), settings(party=party))
    learner.load(model)
    out = ModelBuffer(model.layout)
    return learner.step(round_number, out), out


def round_batch(round_number: int, batch_size: int = 8) -> Batch:
    """Draws a round's batch as a plain program would."""
    sampler = Sampler(examples=20, batch_size=batch_size, seed=7, party="alice")
    generator = sampler.augmentation(round_number)
    generator.integers(2**63)  # the seed of dropout
    data = PointBatches(small_shard().split("train"), noise=0.1)
    return data.batch(sampler.indices(round_number), generator)


def test_the_initial_model_depends_on_the_seed_alone() -> None:
    task = SmallTask()
    torch.rand(3)
    first = task.initial_model(seed=7)
    torch.rand(5)
    assert np.array_equal(first.data, task.initial_model(seed=7).data)
    assert not np.array_equal(first.data, task.initial_model(seed=8).data)


def test_the_initial_model_is_the_tasks_own() -> None:
    model = SmallTask().initial_model(seed=7)
    with seeded(7):
        plain = SmallTask().model()
    for name, parameter in plain.named_parameters():
        assert np.array_equal(model.arrays()[name], parameter.detach().numpy())
    assert np.array_equal(model.arrays()["1.running_mean"], np.zeros(6))
    assert np.array_equal(model.arrays()["1.running_second_moment"], np.ones(6))


def test_the_gradient_is_exactly_that_of_a_plain_loop() -> None:
    task = SmallTask()
    report, out = one_step(task, task.initial_model(seed=7))

    with seeded(7):
        plain = task.model().train()
    points, labels = round_batch(3)
    loss = cross_entropy(plain(points), labels)
    loss.backward()  # type: ignore[no-untyped-call]

    assert report == StepReport(examples=8, loss_sum=loss.item() * 8)
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        assert np.array_equal(out.arrays()[name], parameter.grad.numpy())
    norm = plain[1]  # type: ignore[index]
    mean = norm.running_mean.double().numpy()
    second = norm.running_var.double().numpy() + mean**2
    assert np.array_equal(out.arrays()["1.running_mean"], mean)
    assert np.array_equal(out.arrays()["1.running_second_moment"], second)


def test_following_the_gradients_is_plain_sgd() -> None:
    task = SmallTask()
    model = task.initial_model(seed=7)
    learner = task.learner(small_shard(), settings())
    out = ModelBuffer(model.layout)
    with seeded(7):
        plain = task.model().train()
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.1)
    for number in range(1, 6):
        learner.load(model)
        learner.step(number, out)
        model.parameters -= np.float32(0.1) * out.parameters
        model.statistics[...] = out.statistics

        optimiser.zero_grad()
        points, labels = round_batch(number)
        cross_entropy(plain(points), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    for name, value in task.export(model).items():
        if not name.endswith("num_batches_tracked"):
            plain_value = plain.state_dict()[name].numpy()
            assert np.allclose(value.tolist(), plain_value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_redoing_a_round_gives_the_same_bits(precision: Precision) -> None:
    task = SmallTask(dropout=0.5)
    model = random_model(task)
    fixed = settings(precision=precision)
    learner, fresh = (task.learner(small_shard(), fixed) for _ in range(2))
    first, again, other = (ModelBuffer(model.layout) for _ in range(3))
    learner.load(model)
    report = learner.step(3, first)
    learner.step(4, other)
    assert learner.step(3, again) == report
    assert np.array_equal(first.data, again.data)
    assert not np.array_equal(first.data, other.data)

    torch.rand(7)
    fresh.load(model)
    fresh.step(3, again)
    assert np.array_equal(first.data, again.data)


def test_parties_draw_different_batches_and_noise() -> None:
    model = random_model(SmallTask())
    _, alice = one_step(SmallTask(), model)
    _, bob = one_step(SmallTask(), model, party="bob")
    assert not np.array_equal(alice.parameters, bob.parameters)


def test_a_step_disturbs_neither_global_randomness_nor_the_loaded_model() -> None:
    task = SmallTask(dropout=0.5)
    model = random_model(task)
    learner = task.learner(small_shard(), settings())
    learner.load(model)
    before = learner.evaluate()
    state = torch.random.get_rng_state()
    learner.step(1, ModelBuffer(model.layout))
    assert torch.equal(state, torch.random.get_rng_state())
    assert learner.evaluate() == before


def test_a_learner_keeps_no_reference_to_the_model_it_loads() -> None:
    task = SmallTask()
    model = random_model(task)
    learner = task.learner(small_shard(), settings())
    learner.load(model)
    before = learner.evaluate()
    model.data.fill(0)
    assert learner.evaluate() == before


def test_bfloat16_is_close_to_float32_but_not_the_same() -> None:
    task = SmallTask()
    model = random_model(task)
    outs = []
    for precision in PRECISIONS:
        learner = task.learner(small_shard(), settings(precision=precision))
        learner.load(model)
        out = ModelBuffer(model.layout)
        learner.step(1, out)
        outs.append(out.parameters)
    exact, rounded = outs[0], outs[-1]
    assert np.array_equal(exact, rounded) == (len(PRECISIONS) == 1)
    np.testing.assert_allclose(exact, rounded, atol=0.02)


def test_evaluation_sums_over_every_held_out_example_and_adds_the_loss() -> None:
    task = SmallTask(dropout=0.5)
    shard = small_shard(held_out=EVALUATION_BATCH + 3)
    learner = task.learner(shard, settings())
    model = random_model(task)
    learner.load(model)
    evaluation = learner.evaluate()
    assert evaluation == learner.evaluate()
    assert evaluation.examples == EVALUATION_BATCH + 3
    assert evaluation.sums.keys() == {"accuracy", "loss"}

    plain = task.model().eval()
    state = {name: torch.from_numpy(a) for name, a in task.export(model).items()}
    plain.load_state_dict(state, strict=True)
    record = shard.split("held-out").read(np.arange(EVALUATION_BATCH + 3))
    with torch.no_grad():
        logits = plain(torch.from_numpy(record["point"]))
    labels = torch.from_numpy(record["label"].astype(np.int64))
    assert evaluation.sums["accuracy"] == (logits.argmax(1) == labels).sum()
    loss = cross_entropy(logits, labels, reduction="sum").item()
    assert evaluation.sums["loss"] == pytest.approx(loss, rel=1e-5)


def test_without_held_out_examples_the_evaluation_is_empty() -> None:
    learner = SmallTask().learner(small_shard(held_out=0), settings())
    assert learner.evaluate() == Evaluation(examples=0, sums={})


def test_without_training_examples_there_is_no_learner() -> None:
    with pytest.raises(StorageError) as caught:
        SmallTask().learner(small_shard(train=0), settings())
    assert caught.value.code == "data-empty"


def test_a_batch_larger_than_the_data_goes_round_again() -> None:
    task = SmallTask()
    learner = task.learner(small_shard(train=3), settings(batch_size=8))
    model = task.initial_model(seed=7)
    learner.load(model)
    assert learner.step(1, ModelBuffer(model.layout)).examples == 8


class _PerExampleLoss(SmallTask):
    @override
    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        points, labels = batch
        return cross_entropy(model(points), labels, reduction="none")


def test_a_loss_for_each_example_is_refused() -> None:
    task = _PerExampleLoss()
    with pytest.raises(ConfigError, match="not a scalar") as caught:
        one_step(task, random_model(task))
    assert caught.value.code == "task-loss"


class _ClearingLoss(SmallTask):
    @override
    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        model.zero_grad()
        return super().loss(model, batch)


def test_a_task_that_clears_the_gradients_is_refused_and_does_no_harm() -> None:
    task = _ClearingLoss()
    learner = task.learner(small_shard(), settings())
    model = random_model(task)
    learner.load(model)
    out = ModelBuffer(model.layout)
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            learner.step(1, out)
        assert caught.value.code == "task-gradients"


class _OwnLoss(SmallTask):
    @override
    def evaluate(
        self, model: nn.Module, batch: Batch
    ) -> Mapping[str, torch.Tensor | float]:
        return {"loss": 2.0}


def test_a_task_may_sum_the_loss_itself() -> None:
    learner = _OwnLoss().learner(small_shard(held_out=4), settings())
    assert learner.evaluate().sums == {"loss": 2.0}
