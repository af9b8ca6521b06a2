"""What a PyTorch learner does beside its steps: it predicts, and reads ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.support.records_in_memory import MemoryRecords, MemorySource
from tests.support.sealed_sets import ColumnStream, sealed_set
from tests.unit.workloads.small_task import (
    ROUNDED,
    SmallTask,
    random_model,
    settings,
    small_shard,
)
from torch import nn
from typing_extensions import override

from cloister.errors import ConfigError, StorageError
from cloister.federation.layout import ModelBuffer
from cloister.federation.task import (
    GraphLearner,
    PredictingLearner,
    SteppingLearner,
)
from cloister.storage.records import Batch as RecordBatch
from cloister.storage.records import SplitName
from cloister.workloads.batches import EVALUATION_BATCH

Batch = tuple[torch.Tensor, ...]


class Predicting(SmallTask):
    """A task that predicts."""

    @override
    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        scores = model(batch[0])
        return {"scores": scores, "label": scores.argmax(dim=1)}


def test_a_learner_offers_all_that_a_plan_may_ask_for() -> None:
    learner = SmallTask().learner(small_shard(), settings())
    for wanted in (PredictingLearner, GraphLearner, SteppingLearner):
        assert isinstance(learner, wanted)


def test_predictions_are_those_of_the_opened_model_in_the_records_order() -> None:
    task = Predicting(dropout=0.5)
    shard = small_shard(held_out=EVALUATION_BATCH + 3)
    model = random_model(task)
    learner = task.learner(shard, settings())
    learner.load(model)
    pieces = list(learner.predict())
    assert [len(piece["label"]) for piece in pieces] == [EVALUATION_BATCH, 3]

    plain = task.model().eval()
    state = {name: torch.from_numpy(a) for name, a in task.export(model).items()}
    plain.load_state_dict(state)
    record = shard.split("held-out").read(np.arange(EVALUATION_BATCH + 3))
    with torch.no_grad():
        scores = plain(torch.from_numpy(record["point"])).numpy()
    found = np.concatenate([piece["scores"] for piece in pieces])
    np.testing.assert_allclose(found.astype(np.float32), scores, rtol=1e-5, atol=1e-6)
    labels = np.concatenate([piece["label"] for piece in pieces])
    assert labels.dtype == np.int64
    assert np.array_equal(labels, scores.argmax(axis=1))


def test_predictions_in_bfloat16_come_as_float32() -> None:
    task = Predicting()
    learner = task.learner(small_shard(), settings(precision=ROUNDED))
    (piece,) = learner.predict()
    assert piece["scores"].dtype == np.float32


@pytest.mark.parametrize(
    ("predicted", "named"),
    [
        (lambda scores: {"mean": scores.mean()}, "one row of mean"),
        (lambda scores: {"some": scores[1:]}, "one row of some"),
        (lambda _: {}, "arrays by name"),
        (lambda scores: {"list": scores.tolist()}, "no tensor"),
    ],
)
def test_predictions_that_do_not_go_with_the_records_are_refused(
    predicted: Callable[[torch.Tensor], dict[str, torch.Tensor]], named: str
) -> None:
    class Odd(SmallTask):
        @override
        def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
            return predicted(model(batch[0]))

    with pytest.raises(ConfigError, match=named) as caught:
        list(Odd().learner(small_shard(), settings()).predict())
    assert caught.value.code == "task-predict"


def test_a_task_that_predicts_nothing_says_so() -> None:
    learner = SmallTask().learner(small_shard(), settings())
    with pytest.raises(ConfigError, match="SmallTask") as caught:
        next(iter(learner.predict()))
    assert caught.value.code == "task-predict"


class Broken(MemoryRecords):
    """Records of which some cannot be read."""

    @override
    def read(self, indices: NDArray[np.int64]) -> RecordBatch:
        raise StorageError("record 3 was altered", code="record-altered")


def test_a_record_that_cannot_be_read_ends_the_step_by_name() -> None:
    columns: RecordBatch = {"label": np.zeros(9, np.uint8)}
    splits: dict[SplitName, MemoryRecords] = {
        "train": Broken(columns),
        "held-out": Broken(columns),
    }
    task = SmallTask()
    learner = task.learner(MemorySource(splits), settings())
    for work in (
        lambda: learner.step(1, ModelBuffer(random_model(task).layout)),
        learner.evaluate,
    ):
        with pytest.raises(StorageError, match="record 3") as caught:
            work()
        assert caught.value.code == "record-altered"


def test_sealed_records_train_to_the_same_bits_as_plain_ones(tmp_path: Path) -> None:
    task, plain = SmallTask(), small_shard(train=20, held_out=EVALUATION_BATCH + 3)
    every: dict[SplitName, RecordBatch] = {
        name: plain.split(name).read(np.arange(len(plain.split(name))))
        for name in ("train", "held-out")
    }
    stream = ColumnStream(splits=every, schema=task.schema())
    sealed = sealed_set(tmp_path / "data.sealed", stream=stream).opened()
    outcomes = []
    for source in (plain, sealed):
        learner = task.learner(source, settings())
        model = random_model(task)
        learner.load(model)
        out = ModelBuffer(model.layout)
        # In order, out of order, and over the end of an epoch.
        steps = [
            (learner.step(number, out), out.data.tobytes())
            for number in (1, 2, 3, 9, 4, 4)
        ]
        outcomes.append((steps, learner.evaluate()))
    assert outcomes[0] == outcomes[1]
