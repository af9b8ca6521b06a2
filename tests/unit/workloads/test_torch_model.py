from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.unit.workloads.small_task import (
    SmallTask,
    random_model,
    settings,
    small_shard,
)
from torch import nn
from typing_extensions import override

from cloister.errors import StorageError
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.workloads.torch_model import FlatModel, seeded


class _Tied(nn.Module):
    """Two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    @override
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(values))
        return result


def test_decay_spares_biases_normalisation_and_what_is_frozen() -> None:
    module = nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2), nn.Conv1d(2, 2, 1)
    )
    module[3].requires_grad_(requires_grad=False)
    decayed = {s.name for s in FlatModel(module).layout.parameters if s.decay}
    assert decayed == {"0.weight"}


def test_statistics_are_named_after_their_batch_norm() -> None:
    layout = FlatModel(SmallTask().model()).layout
    assert [(s.name, s.shape) for s in layout.statistics] == [
        ("1.running_mean", (6,)),
        ("1.running_second_moment", (6,)),
    ]


def test_a_lone_batch_norm_has_plain_names() -> None:
    flat = FlatModel(nn.BatchNorm1d(2))
    names = [spec.name for spec in flat.layout.arrays]
    assert names == ["weight", "bias", "running_mean", "running_second_moment"]


def test_a_frozen_parameter_travels_with_a_gradient_of_zero() -> None:
    class Frozen(SmallTask):
        @override
        def model(self) -> nn.Module:
            module = super().model()
            next(module.children()).requires_grad_(requires_grad=False)
            return module

    task = Frozen()
    model = random_model(task)
    learner = task.learner(small_shard(), settings())
    learner.load(model)
    out = ModelBuffer(model.layout)
    out.parameters.fill(1.0)
    learner.step(1, out)
    assert not out.arrays()["0.weight"].any()
    assert out.arrays()["4.weight"].any()
    assert np.array_equal(task.export(model)["0.weight"], model.arrays()["0.weight"])


def test_a_tied_weight_travels_once_and_is_exported_under_both_names() -> None:
    flat = FlatModel(_Tied())
    assert [s.name for s in flat.layout.parameters] == ["first.weight", "second.bias"]
    state = flat.state()
    assert np.array_equal(state["first.weight"], state["second.weight"])
    copy = FlatModel(_Tied())
    copy.load_state(state)
    assert np.array_equal(copy.read().data, flat.read().data)


@pytest.mark.parametrize("seed", range(5))
def test_an_exported_model_comes_back_to_the_same_bits(seed: int) -> None:
    task = SmallTask()
    model = random_model(task, seed=seed)
    exported = task.export(model)
    back = task.load_exported(exported)
    assert np.array_equal(back.parameters, model.parameters)
    again = task.export(back)
    assert exported.keys() == again.keys()
    for name, value in exported.items():
        assert np.array_equal(value, again[name])


def test_an_exported_model_evaluates_exactly_the_same() -> None:
    task = SmallTask()
    model = random_model(task)
    learner = task.learner(small_shard(held_out=300), settings())
    learner.load(model)
    reported = learner.evaluate()
    learner.load(task.load_exported(task.export(model)))
    assert learner.evaluate() == reported


def test_an_export_is_an_ordinary_state_dict() -> None:
    task = SmallTask()
    exported = task.export(random_model(task))
    plain = task.model()
    plain.load_state_dict(
        {name: torch.from_numpy(value) for name, value in exported.items()}, strict=True
    )
    assert exported["1.num_batches_tracked"].dtype == np.int64
    assert exported["1.running_var"].dtype == np.float32


def test_an_export_does_not_change_with_the_model() -> None:
    flat = FlatModel(SmallTask().model())
    state = flat.state()
    before = state["0.weight"].copy()
    flat.load(ModelBuffer(flat.layout))
    assert np.array_equal(state["0.weight"], before)


def test_arrays_of_another_model_are_refused_by_name() -> None:
    task = SmallTask()
    exported = task.export(random_model(task))
    missing = {n: a for n, a in exported.items() if n != "4.bias"}
    for arrays, name in (
        (missing, "4.bias"),
        ({**exported, "extra": np.zeros(1)}, "extra"),
        ({**exported, "4.bias": np.zeros(4, np.float32)}, "4.bias"),
        ({**exported, "4.bias": np.zeros(3, np.float64)}, "4.bias"),
    ):
        with pytest.raises(StorageError, match=name) as caught:
            task.load_exported(arrays)
        assert caught.value.code == "model-mismatch"


def test_a_model_of_another_layout_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="layout"):
        FlatModel(_Tied()).load(ModelBuffer(layout_of({"w": np.zeros(2)}, {})))


def test_instance_norm_that_keeps_statistics_travels_like_batch_norm() -> None:
    module = nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True))
    flat = FlatModel(module)
    assert [s.name for s in flat.layout.statistics] == [
        "0.running_mean",
        "0.running_second_moment",
    ]
    out = ModelBuffer(flat.layout)
    with flat.gradient_into(out):
        flat.training()(torch.arange(12.0).view(2, 2, 3))
    assert out.statistics.any()


def test_untracked_batch_norm_and_transient_buffers_are_no_state() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))
    module.register_buffer("positions", torch.zeros(2), persistent=False)
    flat = FlatModel(module)
    assert flat.layout.statistics == ()
    assert not flat.constants.values


def test_seeding_ends_with_its_block() -> None:
    state = torch.random.get_rng_state()
    with seeded(7):
        first = torch.rand(3)
    assert torch.equal(state, torch.random.get_rng_state())
    with seeded(7):
        assert torch.equal(first, torch.rand(3))


def test_every_part_is_back_in_training_mode_for_a_step() -> None:
    flat = FlatModel(SmallTask(dropout=0.5).model())
    assert flat.training() is flat.module
    flat.module.eval()
    assert all(part.training for part in flat.training().modules())
    next(part for part in flat.module.modules() if part is not flat.module).eval()
    assert all(part.training for part in flat.training().modules())
