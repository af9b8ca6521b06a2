"""A PyTorch task at work on one party's data.

Whatever it computes follows from the plan, the data, the model loaded and the number of
the step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Generic

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer
from cloister.federation.task import (
    Evaluation,
    GraphLearner,
    LearnerSettings,
    PredictingLearner,
    SteppingLearner,
    StepReport,
)
from cloister.storage.records import DataSource
from cloister.workloads.batches import Examples
from cloister.workloads.precision import check_precision
from cloister.workloads.prediction_form import PredictionForm
from cloister.workloads.tensor_batches import BatchT, to_array
from cloister.workloads.torch_graph import network_graph
from cloister.workloads.torch_model import FlatModel, seeded

if TYPE_CHECKING:
    from cloister.workloads.torch import TorchTask


class TorchLearner(PredictingLearner, GraphLearner, SteppingLearner, Generic[BatchT]):
    """A `TorchTask` at work on one party's data.

    Args:
        task: The user's task.
        source: The party's data set.
        settings: What the plan fixes.

    Raises:
        ConfigError: If the model holds state that cannot travel.
        PlatformError: If the CPU lacks the precision that the plan asks for.
        StorageError: If the data has no examples to train on.
    """

    def __init__(
        self, task: TorchTask[BatchT], source: DataSource, settings: LearnerSettings
    ) -> None:
        check_precision(settings.precision)
        torch.set_num_threads(settings.threads)
        # Not `use_deterministic_algorithms`, which does the same and imports PyTorch's
        # compiler for it: seconds of a node's start, and 70 MB.
        torch.set_deterministic_debug_mode("error")
        # On by default beside it, for programs that read memory before they write it;
        # filling every new tensor costs 5 % of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self._task = task
        with seeded(settings.seed):
            self._model = FlatModel(task.model())
        self._examples = Examples(
            source,
            train=task.train_data,
            held_out=task.held_out_data,
            settings=settings,
        )
        self._autocast = torch.autocast(
            "cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"
        )
        self._optimizer: torch.optim.Optimizer | None = None

    @override
    def load(self, model: ModelBuffer) -> None:
        self._model.load(model)

    @override
    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        """Computes one step on the round's batch; see `Learner.step`.

        Raises:
            ConfigError: If the task's loss is no scalar, or replaces the gradients.
        """
        draw = self._examples.draw(round_number)
        with self._model.gradient_into(out), seeded(draw.seed):
            loss = self._descend(self._examples.train_batch(draw))
        examples = len(draw.indices)
        return StepReport(examples=examples, loss_sum=loss * examples)

    @override
    def begin_steps(self, *, rate: float) -> None:
        """Makes the round's optimiser; see `SteppingLearner.begin_steps`.

        Raises:
            ConfigError: If the task has none, or makes something else.
        """
        optimizer: object = self._task.optimizer(self._model.trained(), rate)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise _optimizer_error(
                "the task's optimizer() makes no optimiser",
                expected="a torch.optim.Optimizer",
                got=optimizer,
            )
        self._optimizer = optimizer

    @override
    def take_step(self, number: int) -> StepReport:
        """Takes one step with the task's optimiser; see `SteppingLearner.take_step`.

        An optimiser may look at the loss more than once (L-BFGS does): each time with
        the same batch and the same randomness. The first look is the one reported.

        Raises:
            ConfigError: If the task's loss is no scalar, or replaces the gradients.
        """
        optimizer = self._optimizer
        if optimizer is None:
            raise RuntimeError("begin_steps first")
        draw = self._examples.draw(number)
        losses: list[float] = []
        with seeded(draw.seed):
            batch = self._examples.train_batch(draw)
            drawn = torch.get_rng_state()

            def look() -> float:
                torch.set_rng_state(drawn)
                with torch.enable_grad(), self._model.gradients():
                    losses.append(self._descend(batch))
                return losses[-1]

            optimizer.step(look)
        if not losses:
            raise _optimizer_error(
                "the task's optimiser took a step without asking for the loss",
                expected="an optimiser whose step(closure) calls the closure",
                got=optimizer,
            )
        examples = len(draw.indices)
        return StepReport(examples=examples, loss_sum=losses[0] * examples)

    @override
    def read(self, out: ModelBuffer) -> None:
        self._model.read_into(out)

    @override
    def evaluate(self) -> Evaluation:
        """Evaluates in order, in batches of fixed size: same data, same bits."""
        sums: defaultdict[str, float] = defaultdict(float)
        for indices in self._examples.held_out_indices():
            for name, value in self._metrics(indices).items():
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
            module = self._model.module.eval()
            with torch.no_grad(), seeded(int(indices[0])), self._autocast:
                batch = self._examples.held_out_batch(indices)
                found = self._task.predict(module, batch)
            arrays = {name: to_array(value) for name, value in found.items()}
            yield form.checked(arrays, examples=len(indices))

    @override
    def graph(self) -> bytes:
        """Returns the network as `torch.export` writes it; see `network_graph`.

        Raises:
            ConfigError: If PyTorch cannot write it down (``task-graph``).
        """
        return network_graph(self._task, self._model.state())

    def _descend(self, batch: BatchT) -> float:
        """Returns the batch's loss, and adds its gradients to the model's."""
        module = self._model.training()
        with self._autocast:
            loss = self._task.loss(module, batch)
        _check_scalar(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _metrics(
        self, indices: NDArray[np.int64]
    ) -> Mapping[str, torch.Tensor | float]:
        module = self._model.module.eval()
        with torch.no_grad(), seeded(int(indices[0])), self._autocast:
            batch = self._examples.held_out_batch(indices)
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


def _optimizer_error(what: str, *, expected: str, got: object) -> ConfigError:
    return ConfigError(
        what,
        code="task-optimizer",
        expected=expected,
        got=type(got).__name__,
        remedy="Correct optimizer() in the task.",
    )
