"""PyTorch tasks: an ordinary model and loss become what the engine asks for.

A task derives from `TorchTask` and says what its records, model and loss are; all else
has a default. `torch_learner` has the work on a party's data, `torch_graph` what writes
the network down. What this module does not do: aggregate, decide a learning rate, or
know of rounds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import override

from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer
from cloister.federation.task import LearnerSettings, Task
from cloister.storage.records import DataSource, Schema
from cloister.workloads.batches import Batches
from cloister.workloads.tensor_batches import BatchT, RecordTensors
from cloister.workloads.torch_learner import TorchLearner
from cloister.workloads.torch_model import FlatModel, seeded


class TorchTask(Task, ABC, Generic[BatchT]):
    """Base of a task in PyTorch: derive from it and fill in three methods.

    `schema`, `model` and `loss` must be there. The others are for a task that augments
    its examples, measures more than its loss, predicts, or brings its own optimiser.

    ``TorchTask[B]`` has batches of type `B`, which its `train_data` and `held_out_data`
    make; a plain ``TorchTask`` has dictionaries of tensors by field name.
    """

    @abstractmethod
    @override
    def schema(self) -> Schema:
        """Returns what a record of the task's data holds."""

    @abstractmethod
    def model(self) -> nn.Module:
        """Returns the network, freshly initialised; PyTorch is seeded by the plan.

        All parameters are float32. Persistent buffers are the running statistics of
        normalisation, or constants.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: BatchT) -> torch.Tensor:
        """Returns the mean loss over the batch, a scalar."""

    def train_data(self, source: DataSource) -> Batches[BatchT]:
        """Returns the training examples, augmented at will.

        By default the records of ``train`` as they are: see `RecordTensors`.
        """
        return cast("Batches[BatchT]", RecordTensors(source.split("train")))

    def held_out_data(self, source: DataSource) -> Batches[BatchT]:
        """Returns the held-out examples, always the same.

        By default the records of ``held-out`` as they are: see `RecordTensors`.
        """
        return cast("Batches[BatchT]", RecordTensors(source.split("held-out")))

    def evaluate(
        self,
        model: nn.Module,  # noqa: ARG002 - for those who override it
        batch: BatchT,  # noqa: ARG002
    ) -> Mapping[str, torch.Tensor | float]:
        """Returns, for each metric, its sum over the examples of the batch.

        Without a metric ``loss``, the engine adds it from `loss`, at the price of
        another pass through the model. By default that is all.
        """
        return {}

    def predict(
        self,
        model: nn.Module,  # noqa: ARG002 - for those who override it
        batch: BatchT,  # noqa: ARG002
    ) -> Mapping[str, torch.Tensor]:
        """Returns what the model says of the batch, each (examples, ...), by name.

        By default nothing can be predicted.

        Raises:
            ConfigError: If the task predicts nothing (``task-predict``).
        """
        raise ConfigError(
            f"{type(self).__name__} predicts nothing",
            code="task-predict",
            expected="a method predict(model, batch) that returns tensors by name",
            remedy="Add it to the task; every party then measures it anew.",
        )

    def optimizer(
        self,
        parameters: Sequence[nn.Parameter],  # noqa: ARG002 - for those who override it
        rate: float,  # noqa: ARG002
    ) -> torch.optim.Optimizer:
        """Returns what takes the local steps of a round.

        Asked for in every round, where the plan has ``local_optimizer.name = "task"``.

        Args:
            parameters: Those of the model that are trained, in the model's order.
            rate: The plan's learning rate in this round.

        Raises:
            ConfigError: If the task has no optimiser (``task-optimizer``).
        """
        raise ConfigError(
            f"{type(self).__name__} has no optimiser for local steps",
            code="task-optimizer",
            expected="a method optimizer(parameters, rate) that returns a"
            " torch.optim.Optimizer",
            remedy="Add it to the task, or set local_optimizer.name = 'sgd'.",
        )

    @override
    def initial_model(self, *, seed: int) -> ModelBuffer:
        """Returns the model as `model` makes it under `seed`.

        Raises:
            ConfigError: If the model holds state that cannot travel (``task-state``).
        """
        with seeded(seed):
            flat = FlatModel(self.model())
        if flat.constants.values:
            flat.constants.check_the_same(self._flat_model(seed=seed + 1).constants)
        return flat.read()

    @override
    def learner(
        self, source: DataSource, settings: LearnerSettings
    ) -> TorchLearner[BatchT]:
        """Returns a learner on one party's data.

        It sets PyTorch's number of threads and deterministic algorithms for the whole
        process: a node has one learner.

        Raises:
            ConfigError: If the model holds state that cannot travel.
            PlatformError: If the CPU lacks the precision that the plan asks for.
            StorageError: If the data has no examples to train on.
        """
        return TorchLearner(self, source, settings)

    @override
    def export(self, model: ModelBuffer) -> dict[str, NDArray[np.generic]]:
        """Returns `model` as an ordinary state_dict of `model()`, for its owner.

        ``load_state_dict`` takes it as it is, and the loaded network predicts what the
        learner's does, bit for bit.
        """
        flat = self._flat_model()
        flat.load(model)
        return flat.state()

    @override
    def load_exported(self, arrays: Mapping[str, NDArray[np.generic]]) -> ModelBuffer:
        """Returns the model that was exported as `arrays`.

        Raises:
            StorageError: If the arrays are not those of this task's model.
        """
        flat = self._flat_model()
        flat.load_state(arrays)
        return flat.read()

    def _flat_model(self, *, seed: int = 0) -> FlatModel:
        with seeded(seed):
            return FlatModel(self.model())
