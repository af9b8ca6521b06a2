"""What the engine asks of a task, without naming a framework.

A task is ordinary user code: it knows a model, a loss and how to read its records. The
engine knows rounds. Between them stand these protocols; `workloads` implements them for
PyTorch, and a task in plain NumPy may implement them itself.

Whatever a learner does in a round depends only on the plan, the party's data, the model
it was given and the round's number. So a round that was interrupted can be redone to
the same bits, and nothing of a learner has to be stored. One that keeps something from
round to round says what (`StatefulLearner`), and the engine stores that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cloister.federation.layout import ModelBuffer
from cloister.storage.records import DataSource, Schema

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """What the plan fixes for a worker.

    Attributes:
        party: The worker's party; it seeds the worker's own randomness.
        batch_size: Examples a step.
        seed: The plan's seed.
        threads: Threads of the framework; with the precision it decides the bits.
        precision: Arithmetic of the forward and backward pass.
    """

    party: str
    batch_size: int
    seed: int
    threads: int
    precision: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one training step says beside its gradient.

    Attributes:
        examples: Number of examples the step used; the weight of its update.
        loss_sum: Sum of the loss over those examples.
    """

    examples: int
    loss_sum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Sums over a party's held-out examples, to be added across parties.

    Attributes:
        examples: Number of held-out examples.
        sums: For each metric, the sum over those examples.
    """

    examples: int
    sums: Mapping[str, float]


class Learner(Protocol):
    """A task at work on one party's data; used by one thread at a time."""

    def load(self, model: ModelBuffer) -> None:
        """Takes over the values of `model`; keeps no reference to it."""
        ...

    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        """Computes one step on the round's batch.

        Args:
            round_number: Counts from 1; decides the batch and all randomness.
            out: Receives the mean gradient over the batch in its parameters, and the
                statistics after the step.
        """
        ...

    def evaluate(self) -> Evaluation:
        """Evaluates the loaded model on the party's held-out records."""
        ...


@runtime_checkable
class PredictingLearner(Learner, Protocol):
    """A learner that can say what the loaded model makes of records."""

    def predict(self) -> Iterator[Mapping[str, NDArray[np.generic]]]:
        """Yields what the model predicts for the held-out records, in their order.

        Each item is of the next records: arrays by name, one row a record; the same
        names, types and shapes of a row in all of them.

        Raises:
            ConfigError: If the task predicts nothing (``task-predict``).
        """
        ...


@runtime_checkable
class GraphLearner(Learner, Protocol):
    """A learner that can write down its network's structure."""

    def graph(self) -> bytes:
        """Returns the network with the loaded model's values, as a file's content.

        Nothing in it follows from a single record: its examples of inputs are zeros.

        Raises:
            ConfigError: If the framework cannot write the network down
                (``task-graph``).
        """
        ...


@runtime_checkable
class SteppingLearner(Learner, Protocol):
    """A learner that takes local steps with an optimiser of its own.

    Used where the plan has ``local_optimizer.name = "task"``. In every round the
    optimiser is new: nothing of it is kept from one round to the next.
    """

    def begin_steps(self, *, rate: float) -> None:
        """Makes the round's optimiser for the model just loaded.

        Args:
            rate: The plan's learning rate in this round.

        Raises:
            ConfigError: If the task has no optimiser (``task-optimizer``).
        """
        ...

    def take_step(self, number: int) -> StepReport:
        """Takes one step, moving the learner's own copy of the model.

        Args:
            number: Counts from 1 over all rounds; decides the batch, as in `step`.
        """
        ...

    def read(self, out: ModelBuffer) -> None:
        """Writes the learner's own copy of the model, as it is now, into `out`."""
        ...


@runtime_checkable
class StatefulLearner(Learner, Protocol):
    """A learner that keeps something of its own from one round to the next.

    The momentum of a local optimiser, for instance, residuals of a compression, or a
    random state. What it does in a round may then depend on that, too, and on nothing
    else. Its node keeps it encrypted on its disk, after each round and before the
    round's update leaves; that takes a state key (``state_share`` in the plan). To load
    a model, to evaluate it or to write it down must not change it.
    """

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Returns everything that is kept, array by name, of numbers or truth values.

        The same names, shapes and types at all times; at first, what a learner begins
        with. Nobody changes the arrays.
        """
        ...

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Goes back, or on, to a state that `state` gave, in this process or another.

        Args:
            arrays: The arrays of that state; they are the learner's from now on.
        """
        ...


class Task(Protocol):
    """A model, a loss and a data pipeline, as one class of the plan's task file."""

    def schema(self) -> Schema:
        """Returns what a record of this task's data holds."""
        ...

    def initial_model(self, *, seed: int) -> ModelBuffer:
        """Returns the model training starts from, with its layout.

        Must give the same bits for the same seed on every node.
        """
        ...

    def export(self, model: ModelBuffer) -> dict[str, NDArray[np.generic]]:
        """Returns the model as its recipients will want it, array by name."""
        ...

    def load_exported(self, arrays: Mapping[str, NDArray[np.generic]]) -> ModelBuffer:
        """Returns the model that `export` gave as `arrays`; it evaluates the same.

        Raises:
            StorageError: If the arrays are not this task's.
        """
        ...

    def learner(self, source: DataSource, settings: LearnerSettings) -> Learner:
        """Returns a learner on one party's data.

        Raises:
            StorageError: If the data does not fit the schema.
        """
        ...
