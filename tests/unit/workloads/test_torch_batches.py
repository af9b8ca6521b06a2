"""What a PyTorch task may take for a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tests.unit.workloads.small_task import (
    PointBatches,
    SmallTask,
    settings,
    small_shard,
)
from torch import nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from cloister.federation.layout import ModelBuffer
from cloister.federation.sampling import Sampler
from cloister.storage.records import DataSource, Records, Schema
from cloister.workloads.tensor_batches import Tensors
from cloister.workloads.torch import TorchTask
from cloister.workloads.torch_model import seeded


class Short(TorchTask):
    """As short as a task can be: the default batches, and the loss alone."""

    @override
    def schema(self) -> Schema:
        return SmallTask().schema()

    @override
    def model(self) -> nn.Module:
        return nn.Linear(4, 3)

    @override
    def loss(self, model: nn.Module, batch: Tensors) -> torch.Tensor:
        return cross_entropy(model(batch["point"]), batch["label"])


def test_a_task_needs_three_methods() -> None:
    task, shard = Short(), small_shard()
    model = task.initial_model(seed=7)
    learner = task.learner(shard, settings())
    learner.load(model)
    out = ModelBuffer(model.layout)
    report = learner.step(3, out)

    with seeded(7):
        plain = task.model()
    sampler = Sampler(examples=20, batch_size=8, seed=7, party="alice")
    record = shard.split("train").read(sampler.indices(3))
    labels = torch.from_numpy(record["label"].astype(np.int64))
    loss = cross_entropy(plain(torch.from_numpy(record["point"])), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    assert report.loss_sum == loss.item() * 8
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        assert np.array_equal(out.arrays()[name], parameter.grad.numpy())

    evaluation = learner.evaluate()
    assert evaluation.examples == 9
    assert evaluation.sums.keys() == {"loss"}


@dataclass(frozen=True, slots=True)
class Pair:
    """A batch of a task's own type."""

    points: torch.Tensor
    labels: torch.Tensor


class PairBatches:
    def __init__(self, records: Records) -> None:
        self._points = PointBatches(records, noise=0.0)

    def __len__(self) -> int:
        return len(self._points)

    def batch(self, indices: NDArray[np.int64], generator: np.random.Generator) -> Pair:
        return Pair(*self._points.batch(indices, generator))


class PairTask(TorchTask[Pair]):
    """A task whose batches are neither tuples nor dictionaries."""

    @override
    def schema(self) -> Schema:
        return SmallTask().schema()

    @override
    def model(self) -> nn.Module:
        return nn.Linear(4, 3)

    @override
    def train_data(self, source: DataSource) -> PairBatches:
        return PairBatches(source.split("train"))

    @override
    def held_out_data(self, source: DataSource) -> PairBatches:
        return PairBatches(source.split("held-out"))

    @override
    def loss(self, model: nn.Module, batch: Pair) -> torch.Tensor:
        return cross_entropy(model(batch.points), batch.labels)


def test_a_batch_may_be_of_any_type() -> None:
    model = Short().initial_model(seed=7)
    outs = []
    for learner in (
        PairTask().learner(small_shard(), settings()),
        Short().learner(small_shard(), settings()),
    ):
        learner.load(model)
        out = ModelBuffer(model.layout)
        outs.append((learner.step(1, out), out.data.tobytes(), learner.evaluate()))
    assert outs[0] == outs[1]
