"""Tasks without a framework, on the helper base."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.records_in_memory import MemoryRecords, MemorySource
from tests.unit.workloads.small_task import settings
from typing_extensions import override

from cloister.errors import ConfigError, StorageError
from cloister.federation.layout import ModelBuffer
from cloister.federation.sampling import Sampler
from cloister.federation.task import Evaluation, PredictingLearner
from cloister.storage.records import Batch, Field, Schema, SplitName
from cloister.workloads.batches import EVALUATION_BATCH
from cloister.workloads.numpy import Arrays, Gradient, NumpyTask

SLOPE = np.array([[2.0], [-1.0], [0.5]])


class Plane(NumpyTask):
    """A plane through points, by least squares; it counts its steps."""

    @override
    def schema(self) -> Schema:
        return Schema(
            fields=(
                Field(name="label", dtype="float32", shape=(1,)),
                Field(name="x", dtype="float32", shape=(3,)),
            )
        )

    @override
    def parameters(self, generator: np.random.Generator) -> Arrays:
        return {"slope": generator.normal(0, 0.1, (3, 1)), "offset": np.zeros(1)}

    @override
    def statistics(self) -> Arrays:
        return {"steps": np.zeros(())}

    @override
    def gradient(self, model: Arrays, batch: Batch) -> Gradient:
        error = _values(model, batch) - np.asarray(batch["label"], np.float64)
        x = np.asarray(batch["x"], np.float64)
        return Gradient(
            loss=float(np.mean(error**2)),
            parameters={
                "slope": 2 * x.T @ error / len(x),
                "offset": 2 * error.mean(axis=0),
            },
            statistics={"steps": model["steps"] + 1},
        )

    @override
    def predict(self, model: Arrays, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        return {"value": _values(model, batch)[:, 0]}


def _values(model: Arrays, batch: Batch) -> NDArray[np.float64]:
    x = np.asarray(batch["x"], np.float64)
    values: NDArray[np.float64] = x @ model["slope"] + model["offset"]
    return values


def points(*, train: int = 40, held_out: int = 9) -> MemorySource:
    generator = np.random.default_rng(0)

    def records(count: int) -> MemoryRecords:
        x = generator.standard_normal((count, 3))
        label = (x @ SLOPE + 0.25).astype(np.float32)
        return MemoryRecords({"label": label, "x": x.astype(np.float32)})

    splits: dict[SplitName, MemoryRecords] = {
        "train": records(train),
        "held-out": records(held_out),
    }
    return MemorySource(splits)


def test_a_task_of_three_methods_learns() -> None:
    task = Plane()
    model = task.initial_model(seed=7)
    learner = task.learner(points(), settings())
    out = ModelBuffer(model.layout)
    for number in range(1, 200):
        learner.load(model)
        learner.step(number, out)
        model.parameters -= np.float32(0.05) * out.parameters
        model.statistics[:] = out.statistics
    np.testing.assert_allclose(model.arrays()["slope"], SLOPE, atol=1e-4)
    assert model.arrays()["steps"] == 199
    learner.load(model)
    assert learner.evaluate().sums["loss"] < 1e-6


def test_the_initial_model_follows_from_the_seed() -> None:
    task = Plane()
    first = task.initial_model(seed=7)
    assert np.array_equal(first.data, task.initial_model(seed=7).data)
    assert not np.array_equal(first.data, task.initial_model(seed=8).data)
    assert [(s.name, s.kind, s.decay) for s in first.layout.arrays] == [
        ("slope", "parameter", True),
        ("offset", "parameter", False),
        ("steps", "statistic", False),
    ]


def test_a_step_is_the_gradient_of_the_samplers_batch() -> None:
    task, source = Plane(), points()
    model = task.initial_model(seed=7)
    learner = task.learner(source, settings())
    learner.load(model)
    out = ModelBuffer(model.layout)
    report = learner.step(3, out)
    indices = Sampler(examples=40, batch_size=8, seed=7, party="alice").indices(3)
    found = task.gradient(model.arrays(), source.split("train").read(indices))
    assert report.examples == 8
    assert report.loss_sum == found.loss * 8
    for name, value in found.parameters.items():
        assert np.array_equal(out.arrays()[name], value.astype(np.float32))


def test_augmentation_draws_from_the_rounds_generator_and_spares_evaluation() -> None:
    class Noisy(Plane):
        @override
        def augment(self, batch: Batch, generator: np.random.Generator) -> Batch:
            x = np.asarray(batch["x"], np.float64)
            return {**batch, "x": x + generator.standard_normal(x.shape)}

    outs = []
    for task in (Noisy(), Noisy(), Plane()):
        model = task.initial_model(seed=7)
        learner = task.learner(points(), settings())
        out = ModelBuffer(model.layout)
        learner.load(model)
        learner.step(3, out)
        outs.append((out.parameters.tolist(), learner.evaluate()))
    noisy, again, plain = outs
    assert noisy == again
    assert noisy[0] != plain[0]
    assert noisy[1] == plain[1]


def test_evaluation_sums_over_every_held_out_example_and_adds_the_loss() -> None:
    class Counted(Plane):
        @override
        def evaluate(self, model: Arrays, batch: Batch) -> Mapping[str, float]:
            return {"count": len(batch["x"])}

    task = Counted()
    source = points(held_out=EVALUATION_BATCH + 3)
    learner = task.learner(source, settings())
    evaluation = learner.evaluate()
    assert evaluation.examples == evaluation.sums["count"] == EVALUATION_BATCH + 3
    model = task.initial_model(seed=7).arrays()
    batch = source.split("held-out").read(np.arange(EVALUATION_BATCH + 3))
    loss = task.gradient(model, batch).loss * (EVALUATION_BATCH + 3)
    assert evaluation.sums["loss"] == pytest.approx(loss, rel=1e-9)
    empty = task.learner(points(held_out=0), settings())
    assert empty.evaluate() == Evaluation(examples=0, sums={})


def test_predictions_follow_the_records() -> None:
    task, source = Plane(), points(held_out=EVALUATION_BATCH + 3)
    learner = task.learner(source, settings())
    assert isinstance(learner, PredictingLearner)
    found = np.concatenate([piece["value"] for piece in learner.predict()])
    batch = source.split("held-out").read(np.arange(EVALUATION_BATCH + 3))
    model = task.initial_model(seed=7).arrays()
    np.testing.assert_allclose(
        found.astype(np.float64), _values(model, batch)[:, 0], rtol=1e-6
    )


def test_an_exported_model_comes_back_and_another_is_refused() -> None:
    task = Plane()
    model = task.initial_model(seed=7)
    model.statistics[:] = 5
    exported = task.export(model)
    assert np.array_equal(task.load_exported(exported).data, model.data)
    for name, value in (
        ("slope", np.zeros((3, 1))),
        ("slope", np.zeros((1, 3), np.float32)),
        ("extra", np.zeros(1)),
    ):
        with pytest.raises(StorageError, match="not the task's") as caught:
            task.load_exported({**exported, name: value})
        assert caught.value.code == "model-mismatch"


def test_the_model_is_the_tasks_to_read_alone() -> None:
    class Writing(Plane):
        @override
        def gradient(self, model: Arrays, batch: Batch) -> Gradient:
            model["offset"][0] = 1
            return super().gradient(model, batch)

    task = Writing()
    learner = task.learner(points(), settings())
    with pytest.raises(ValueError, match="read-only"):
        learner.step(1, ModelBuffer(task.initial_model(seed=7).layout))


@pytest.mark.parametrize(
    "change",
    [
        lambda g: {"slope": g["slope"]},
        lambda g: {**g, "extra": g["offset"]},
        lambda g: {**g, "slope": g["slope"].T},
    ],
    ids=["missing", "surplus", "another shape"],
)
def test_a_gradient_of_another_model_is_refused(
    change: Callable[[Arrays], Arrays],
) -> None:
    class Odd(Plane):
        @override
        def gradient(self, model: Arrays, batch: Batch) -> Gradient:
            found = super().gradient(model, batch)
            return Gradient(
                loss=found.loss,
                parameters=change(found.parameters),
                statistics=found.statistics,
            )

    task = Odd()
    learner = task.learner(points(), settings())
    with pytest.raises(ConfigError) as caught:
        learner.step(1, ModelBuffer(task.initial_model(seed=7).layout))
    assert caught.value.code == "task-gradients"


def test_what_numpy_cannot_do_is_refused() -> None:
    class Silent(Plane):
        predict = NumpyTask.predict

    with pytest.raises(ConfigError) as caught:
        Plane().learner(points(), settings(precision="bfloat16"))
    assert caught.value.code == "task-precision"
    with pytest.raises(ConfigError, match="Silent") as caught:
        next(iter(Silent().learner(points(), settings()).predict()))
    assert caught.value.code == "task-predict"
    with pytest.raises(StorageError) as empty:
        Plane().learner(points(train=0), settings())
    assert empty.value.code == "data-empty"
