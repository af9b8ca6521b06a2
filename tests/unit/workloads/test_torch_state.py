"""Which models can travel between parties, and which cannot."""

from __future__ import annotations

from collections.abc import Callable

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

from cloister.errors import ConfigError, StorageError
from cloister.federation.layout import ModelBuffer
from cloister.workloads.torch_model import FlatModel


class Scaled(nn.Module):
    """A network behind a table of constants.

    Args:
        table: The constants.
        change: Done to the module with every batch.
    """

    def __init__(
        self,
        inner: nn.Module,
        table: torch.Tensor,
        change: Callable[[nn.Module], object] = lambda _: None,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("table", table)
        self.change = change

    @override
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.change(self)
        result: torch.Tensor = self.inner(values * self.get_buffer("table"))
        return result


class ScaledTask(SmallTask):
    """The small task with such a table in front."""

    def __init__(
        self,
        table: Callable[[], torch.Tensor] = lambda: torch.arange(1.0, 5.0),
        change: Callable[[nn.Module], object] = lambda _: None,
    ) -> None:
        super().__init__()
        self._table = table
        self._change = change

    @override
    def model(self) -> nn.Module:
        return Scaled(super().model(), self._table(), self._change)


def test_constants_are_exported_and_do_not_travel() -> None:
    task = ScaledTask()
    model = random_model(task)
    assert "table" not in model.arrays()
    exported = task.export(model)
    assert exported["table"].tolist() == [1, 2, 3, 4]
    learner = task.learner(small_shard(), settings())
    learner.load(task.load_exported(exported))
    first = learner.evaluate()
    learner.load(model)
    assert learner.evaluate() == first
    learner.step(1, ModelBuffer(model.layout))


def test_an_exported_model_with_other_constants_is_refused() -> None:
    task = ScaledTask()
    exported = task.export(random_model(task))
    exported["table"] = np.ones(4, np.float32)
    with pytest.raises(StorageError, match="constant table") as caught:
        task.load_exported(exported)
    assert caught.value.code == "model-mismatch"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.table.add_(1),
        lambda m: m.table.copy_(m.table),
        lambda m: setattr(m, "table", m.table + 1),
    ],
    ids=["in place", "written over", "replaced"],
)
def test_a_constant_that_training_changes_is_refused(
    change: Callable[[nn.Module], object],
) -> None:
    task = ScaledTask(change=change)
    model = random_model(task)
    learner = task.learner(small_shard(), settings())
    learner.load(model)
    with pytest.raises(ConfigError, match="buffer table") as caught:
        learner.step(1, ModelBuffer(model.layout))
    assert caught.value.code == "task-state"


def test_a_constant_drawn_at_random_is_refused() -> None:
    task = ScaledTask(table=lambda: torch.rand(4))
    with pytest.raises(ConfigError, match="buffer table") as caught:
        task.initial_model(seed=7)
    assert caught.value.code == "task-state"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.append(nn.LazyLinear(2)), "parameter 2.weight"),
        (lambda m: m.double(), "parameter 0.weight"),
        (lambda m: setattr(m[1], "momentum", None), "batch norm 1"),
        (
            lambda m: m.register_buffer("table", torch.zeros(2, dtype=torch.bfloat16)),
            "buffer table",
        ),
    ],
)
def test_state_that_cannot_travel_is_refused_by_name(
    change: Callable[[nn.Sequential], object], named: str
) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    change(module)
    with pytest.raises(ConfigError, match=named) as caught:
        FlatModel(module)
    assert caught.value.code == "task-state"
