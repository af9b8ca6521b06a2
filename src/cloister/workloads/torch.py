"""PyTorch tasks: an ordinary model and loss become what the engine asks for.

A task derives from `TorchTask` and says what its data, model and loss are; the rest is
here. What this module does not do: aggregate, decide a learning rate, or know of rounds
other than by the number it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import override

from cloister.errors import ConfigError, StorageError
from cloister.federation.layout import ModelBuffer
from cloister.federation.sampling import Sampler
from cloister.federation.task import (
    Evaluation,
    Learner,
    LearnerSettings,
    StepReport,
    Task,
)
from cloister.storage.records import DataSource, Schema
from cloister.workloads.torch_model import FlatModel, seeded

# Fixed, since the size of a batch decides how its sums are rounded.
EVALUATION_BATCH = 250

Batch = tuple[torch.Tensor, ...]


class Batches(Protocol):
    """A party's records as tensors, ready for the model."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(
        self, indices: NDArray[np.int64], generator: np.random.Generator
    ) -> Batch:
        """Returns the examples at `indices`, each tensor (len(indices), ...).

        Args:
            indices: Which examples.
            generator: Source of all randomness, so that a round can be redone.
        """
        ...


class TorchTask(Task, ABC):
    """Base of a task in PyTorch: derive from it and fill in the six methods."""

    @abstractmethod
    @override
    def schema(self) -> Schema:
        """Returns what a record of the task's data holds."""

    @abstractmethod
    def model(self) -> nn.Module:
        """Returns the network, freshly initialised; PyTorch is seeded by the plan.

        All parameters are float32. The only persistent buffers may be the running
        statistics of batch norm.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Returns the mean loss over the batch, a scalar."""

    @abstractmethod
    def train_data(self, source: DataSource) -> Batches:
        """Returns the training examples, augmented at will."""

    @abstractmethod
    def held_out_data(self, source: DataSource) -> Batches:
        """Returns the held-out examples, always the same."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, batch: Batch
    ) -> Mapping[str, torch.Tensor | float]:
        """Returns, for each metric, its sum over the examples of the batch.

        Without a metric ``loss``, the engine adds it from `loss`, at the price of
        another pass through the model.
        """

    @override
    def initial_model(self, *, seed: int) -> ModelBuffer:
        """Returns the model as `model` makes it under `seed`."""
        with seeded(seed):
            return FlatModel(self.model()).read()

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> Learner:
        """Returns a learner on one party's data.

        It sets PyTorch's number of threads and deterministic algorithms for the whole
        process: a node has one learner.

        Raises:
            ConfigError: If the model holds state that cannot travel.
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

    def _flat_model(self) -> FlatModel:
        with seeded(0):
            return FlatModel(self.model())


class TorchLearner(Learner):
    """A `TorchTask` at work on one party's data.

    Args:
        task: The user's task.
        source: The party's data set.
        settings: What the plan fixes.
    """

    def __init__(
        self, task: TorchTask, source: DataSource, settings: LearnerSettings
    ) -> None:
        torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(mode=True)
        # On by default beside it, for programs that read memory before they write it;
        # filling every new tensor costs 5 % of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self._task = task
        with seeded(settings.seed):
            self._model = FlatModel(task.model())
        self._train = task.train_data(source)
        self._held_out = task.held_out_data(source)
        if not len(self._train):
            raise StorageError(
                f"{settings.party} has no examples to train on",
                code="data-empty",
                remedy="Give the party some data, or leave it out of the plan.",
            )
        self._sampler = Sampler(
            examples=len(self._train),
            batch_size=settings.batch_size,
            seed=settings.seed,
            party=settings.party,
        )
        self._autocast = torch.autocast(
            "cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"
        )

    @override
    def load(self, model: ModelBuffer) -> None:
        self._model.load(model)

    @override
    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        """Computes one step on the round's batch; see `Learner.step`.

        Raises:
            ConfigError: If the task's loss is no scalar, or replaces the gradients.
        """
        indices = self._sampler.indices(round_number)
        generator = self._sampler.augmentation(round_number)
        # Drawn before the task draws, so it does not depend on how much that takes.
        dropout_seed = int(generator.integers(2**63))
        module = self._model.training()
        with self._model.gradient_into(out), seeded(dropout_seed):
            batch = self._train.batch(indices, generator)
            with self._autocast:
                loss = self._task.loss(module, batch)
            _check_scalar(loss)
            loss.backward()  # type: ignore[no-untyped-call]
        examples = len(indices)
        return StepReport(examples=examples, loss_sum=loss.item() * examples)

    @override
    def evaluate(self) -> Evaluation:
        """Evaluates in order, in batches of fixed size: same data, same bits."""
        examples = len(self._held_out)
        sums: defaultdict[str, float] = defaultdict(float)
        for start in range(0, examples, EVALUATION_BATCH):
            stop = min(start + EVALUATION_BATCH, examples)
            for name, value in self._metrics(np.arange(start, stop)).items():
                sums[name] += float(value)
        return Evaluation(examples=examples, sums=dict(sums))

    def _metrics(
        self, indices: NDArray[np.int64]
    ) -> Mapping[str, torch.Tensor | float]:
        seed = int(indices[0])
        module = self._model.module.eval()
        with torch.no_grad(), seeded(seed), self._autocast:
            batch = self._held_out.batch(indices, np.random.default_rng(seed))
            metrics = dict(self._task.evaluate(module, batch))
            if "loss" not in metrics:
                metrics["loss"] = self._task.loss(module, batch) * len(indices)
        return metrics


def _check_scalar(loss: torch.Tensor) -> None:
    if loss.ndim:
        raise ConfigError(
            "the task's loss is not a scalar",
            code="task-loss",
            expected="the mean over the batch, one value",
            got=f"a tensor of shape {tuple(loss.shape)}",
            remedy="Take the mean in the task's loss().",
        )
