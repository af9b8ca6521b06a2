"""A small PyTorch task and data in memory, for the tests of the adapter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from cloister.federation.layout import ModelBuffer
from cloister.federation.task import LearnerSettings, Precision
from cloister.storage.raw_shard import RawRecords, RawShard
from cloister.storage.records import DataSource, Field, Records, Schema
from cloister.workloads.precision import has_fast_bfloat16
from cloister.workloads.torch import TorchTask


def small_shard(
    *, train: int = 20, held_out: int = 9, seed: int = 0, shift: float = 0.0
) -> RawShard:
    """Returns random points in three classes, moved by `shift`."""
    generator = np.random.default_rng(seed)

    def records(count: int) -> RawRecords:
        points = generator.standard_normal((count, 4)).astype(np.float32)
        labels = generator.integers(0, 3, count).astype(np.uint8)
        return RawRecords({"point": points + np.float32(shift), "label": labels})

    return RawShard({"train": records(train), "held-out": records(held_out)}, "sha256:")


def settings(
    *,
    party: str = "alice",
    batch_size: int = 8,
    precision: Precision = "float32",
) -> LearnerSettings:
    """Returns what a plan would fix."""
    return LearnerSettings(
        party=party, batch_size=batch_size, seed=7, threads=1, precision=precision
    )


class PointBatches:
    """Points with some noise, so that the generator matters."""

    def __init__(self, records: Records, *, noise: float) -> None:
        self._records = records
        self._noise = noise

    def __len__(self) -> int:
        return len(self._records)

    def batch(
        self, indices: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[torch.Tensor, ...]:
        """Returns points and labels."""
        record = self._records.read(indices)
        points = np.asarray(record["point"], np.float32)
        noise = generator.standard_normal(points.shape).astype(np.float32)
        labels = torch.from_numpy(np.asarray(record["label"], np.int64))
        return torch.from_numpy(points + np.float32(self._noise) * noise), labels


class SmallTask(TorchTask[tuple[torch.Tensor, ...]]):
    """Two dense layers around a batch norm; `change` spoils the model on purpose."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        self.dropout = dropout

    @override
    def schema(self) -> Schema:
        point = Field(name="point", dtype="float32", shape=(4,))
        return Schema(fields=(point, Field(name="label", dtype="uint8", below=3)))

    @override
    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(6, 3),
        )

    @override
    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        points, labels = batch
        return cross_entropy(model(points), labels)

    @override
    def train_data(self, source: DataSource) -> PointBatches:
        return PointBatches(source.split("train"), noise=0.1)

    @override
    def held_out_data(self, source: DataSource) -> PointBatches:
        return PointBatches(source.split("held-out"), noise=0.0)

    @override
    def evaluate(
        self, model: nn.Module, batch: tuple[torch.Tensor, ...]
    ) -> Mapping[str, torch.Tensor | float]:
        points, labels = batch
        return {"accuracy": (model(points).argmax(dim=1) == labels).sum()}


def random_model(
    task: TorchTask[tuple[torch.Tensor, ...]], *, seed: int = 3
) -> ModelBuffer:
    """Returns a model of the task with statistics as after some training."""
    model = task.initial_model(seed=seed)
    generator = np.random.default_rng(seed)
    half = len(model.statistics) // 2
    means = generator.standard_normal(half) * 10.0 ** generator.integers(-3, 4, half)
    model.statistics[:half] = means
    model.statistics[half:] = means**2 + generator.random(half)
    return model


# What this processor computes in. Where it has no bfloat16, that is refused, which
# `test_precision` is about; no test is skipped for it.
PRECISIONS: tuple[Precision, ...] = (
    ("float32", "bfloat16") if has_fast_bfloat16() else ("float32",)
)
ROUNDED: Precision = PRECISIONS[-1]
