"""NumPy tasks: a few arrays and their gradient become what the engine asks for.

A task derives from `NumpyTask` and says what its records, first arrays and gradient
are. It needs no framework. Whoever wants more than that, other batches or an optimiser
of their own, has the engine's own protocols in `federation.task`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from cloister.errors import ConfigError, StorageError
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.federation.task import LearnerSettings, Task
from cloister.storage.records import Batch, DataSource, Schema
from cloister.workloads.numpy_learner import Arrays, NumpyLearner

__all__ = ["Arrays", "Gradient", "NumpyTask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """What a batch says of the model.

    Attributes:
        loss: The mean loss over the batch.
        parameters: Its derivative by each parameter, by name.
        statistics: The statistics after the step, by name.
    """

    loss: float
    parameters: Arrays
    statistics: Arrays = field(default_factory=dict)


class NumpyTask(Task, ABC):
    """Base of a task in NumPy: derive from it and fill in three methods.

    `schema`, `parameters` and `gradient` must be there; the others have defaults. A
    model is a dictionary of arrays that cannot be written to: parameters are float32,
    statistics float64. A batch is a dictionary of the records' fields.
    """

    @abstractmethod
    @override
    def schema(self) -> Schema:
        """Returns what a record of the task's data holds."""

    @abstractmethod
    def parameters(self, generator: np.random.Generator) -> Arrays:
        """Returns the trained arrays that training starts from.

        Args:
            generator: Source of all randomness; seeded by the plan.
        """

    @abstractmethod
    def gradient(self, model: Arrays, batch: Batch) -> Gradient:
        """Returns the mean loss over the batch, and its gradient."""

    def statistics(self) -> Arrays:
        """Returns the averaged arrays that training starts from; none by default."""
        return {}

    def augment(
        self,
        batch: Batch,
        generator: np.random.Generator,  # noqa: ARG002 - for those who override it
    ) -> Batch:
        """Returns a batch to train on; by default the records as they are.

        Args:
            batch: The records.
            generator: Source of all randomness, so that a round can be redone.
        """
        return batch

    def evaluate(
        self,
        model: Arrays,  # noqa: ARG002 - for those who override it
        batch: Batch,  # noqa: ARG002
    ) -> Mapping[str, float]:
        """Returns, for each metric, its sum over the examples of the batch.

        Without a metric ``loss``, the engine adds it from `gradient`. By default that
        is all.
        """
        return {}

    def predict(
        self,
        model: Arrays,  # noqa: ARG002 - for those who override it
        batch: Batch,  # noqa: ARG002
    ) -> Mapping[str, NDArray[np.generic]]:
        """Returns what the model says of the batch, each (examples, ...), by name.

        By default nothing can be predicted.

        Raises:
            ConfigError: If the task predicts nothing (``task-predict``).
        """
        raise ConfigError(
            f"{type(self).__name__} predicts nothing",
            code="task-predict",
            expected="a method predict(model, batch) that returns arrays by name",
            remedy="Add it to the task; every party then measures it anew.",
        )

    @override
    def initial_model(self, *, seed: int) -> ModelBuffer:
        """Returns the arrays of `parameters` under `seed`, and of `statistics`.

        Weight decay applies to parameters with two axes or more.
        """
        generator = np.random.Generator(np.random.PCG64(seed))
        parameters, statistics = self.parameters(generator), self.statistics()
        flat = [name for name, array in parameters.items() if array.ndim < 2]
        model = ModelBuffer(layout_of(parameters, statistics, without_decay=flat))
        model.fill({**parameters, **statistics})
        return model

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> NumpyLearner:
        """Returns a learner on one party's data.

        Raises:
            ConfigError: If the plan asks for bfloat16, which NumPy does not have
                (``task-precision``).
            StorageError: If the data has no examples to train on.
        """
        return NumpyLearner(self, source, settings)

    @override
    def export(self, model: ModelBuffer) -> dict[str, NDArray[np.generic]]:
        """Returns a copy of each array of `model`, by name."""
        return {name: array.copy() for name, array in model.arrays().items()}

    @override
    def load_exported(self, arrays: Mapping[str, NDArray[np.generic]]) -> ModelBuffer:
        """Returns the model that was exported as `arrays`.

        Raises:
            StorageError: If the arrays are not those of this task's model.
        """
        model = self.initial_model(seed=0)
        wanted = _forms(model.arrays())
        if _forms(arrays) != wanted:
            raise StorageError(
                "the model's arrays are not the task's",
                code="model-mismatch",
                expected=str(wanted),
                got=str(_forms(arrays)),
                remedy="Use the task file and options of the plan that trained this"
                " model.",
            )
        model.fill(arrays)
        return model


def _forms(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, str]:
    return {name: f"{a.dtype} {a.shape}" for name, a in sorted(arrays.items())}
