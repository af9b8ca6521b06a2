"""A NumPy task at work on one party's data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer
from cloister.federation.task import (
    Evaluation,
    LearnerSettings,
    PredictingLearner,
    StepReport,
)
from cloister.storage.records import Batch, DataSource, Records
from cloister.workloads.batches import Examples
from cloister.workloads.prediction_form import PredictionForm

if TYPE_CHECKING:
    from cloister.workloads.numpy import NumpyTask

# Not `generic`: a task computes with them.
Arrays: TypeAlias = Mapping[str, NDArray[np.floating]]


class NumpyLearner(PredictingLearner):
    """A `NumpyTask` at work on one party's data.

    Args:
        task: The user's task.
        source: The party's data set.
        settings: What the plan fixes.

    Raises:
        ConfigError: If the plan asks for bfloat16 (``task-precision``).
        StorageError: If the data has no examples to train on.
    """

    def __init__(
        self, task: NumpyTask, source: DataSource, settings: LearnerSettings
    ) -> None:
        if settings.precision != "float32":
            raise ConfigError(
                "the plan asks for a precision that NumPy does not have",
                code="task-precision",
                expected="float32",
                got=settings.precision,
                remedy="Set precision = 'float32' in the plan.",
            )
        self._task = task
        self._own = task.initial_model(seed=settings.seed)
        self._model: Arrays = self._own.arrays()
        for array in self._model.values():
            array.flags.writeable = False  # the task's to read
        self._examples = Examples(
            source,
            train=lambda data: _RecordBatches(data.split("train"), task.augment),
            held_out=lambda data: _RecordBatches(
                data.split("held-out"), lambda batch, _: batch
            ),
            settings=settings,
        )

    @override
    def load(self, model: ModelBuffer) -> None:
        if model.layout != self._own.layout:
            raise RuntimeError("this model has another layout than the task's")
        np.copyto(self._own.data, model.data)

    @override
    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        """Computes one step on the round's batch; see `Learner.step`.

        Raises:
            ConfigError: If the task's gradient is not one of its model
                (``task-gradients``).
        """
        draw = self._examples.draw(round_number)
        # A model that diverges is no fault of the arithmetic: the server says so.
        with np.errstate(over="ignore", invalid="ignore"):
            found = self._task.gradient(self._model, self._examples.train_batch(draw))
            values = {**found.parameters, **found.statistics}
            _check_forms(values, self._model)
            out.fill(values)
        examples = len(draw.indices)
        return StepReport(examples=examples, loss_sum=float(found.loss) * examples)

    @override
    def evaluate(self) -> Evaluation:
        """Evaluates in order, in batches of fixed size: same data, same bits."""
        sums: defaultdict[str, float] = defaultdict(float)
        for indices in self._examples.held_out_indices():
            batch = self._examples.held_out_batch(indices)
            metrics = dict(self._task.evaluate(self._model, batch))
            if "loss" not in metrics:
                loss = self._task.gradient(self._model, batch).loss
                metrics["loss"] = loss * len(indices)
            for name, value in metrics.items():
                sums[name] += float(value)
        return Evaluation(examples=self._examples.held_out_count, sums=dict(sums))

    @override
    def predict(self) -> Iterator[Mapping[str, NDArray[np.generic]]]:
        """Predicts in order, in the batches of an evaluation.

        Raises:
            ConfigError: If the task predicts nothing, or not one row for each record
                (``task-predict``).
        """
        form = PredictionForm()
        for indices in self._examples.held_out_indices():
            batch = self._examples.held_out_batch(indices)
            found = self._task.predict(self._model, batch)
            yield form.checked(found, examples=len(indices))


class _RecordBatches:
    """Records, changed as the task wants them."""

    def __init__(
        self,
        records: Records,
        change: Callable[[Batch, np.random.Generator], Batch],
    ) -> None:
        self._records = records
        self._change = change

    def __len__(self) -> int:
        return len(self._records)

    def batch(
        self, indices: NDArray[np.int64], generator: np.random.Generator
    ) -> Batch:
        return self._change(self._records.read(indices), generator)


def _check_forms(found: Arrays, model: Arrays) -> None:
    wanted = {name: array.shape for name, array in model.items()}
    got = {name: np.shape(array) for name, array in found.items()}
    if got != wanted:
        raise ConfigError(
            "the task's gradient is not one of its model",
            code="task-gradients",
            expected=f"arrays of these shapes: {wanted}",
            got=str(got),
            remedy="Correct gradient() in the task.",
        )
