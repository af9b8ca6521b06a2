"""A worker's round of `fedavg`: several steps on its own model.

McMahan et al., 2017, algorithm 1 (ClientUpdate), with what Reddi et al., 2021, call the
pseudo-gradient for a result: by how much the steps moved the parameters, negated. The
server's optimiser takes the mean of them for a gradient; plain SGD with rate 1 there is
FedAvg as it was first described.

With SGD a task knows nothing of this: each step is one of its learner's own. Where the
plan names the task's optimiser, the learner takes the steps itself.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from typing_extensions import override

from cloister.errors import ConfigError
from cloister.federation.course import schedule_of
from cloister.federation.layout import ModelBuffer
from cloister.federation.model_state import BLOCK
from cloister.federation.strategies.optimizers import Sgd, Workspace
from cloister.federation.strategies.schedules import LearningRate
from cloister.federation.strategies.weight_decay import WeightDecay
from cloister.federation.task import Learner, SteppingLearner, StepReport
from cloister.plan.training import Training


class LocalSteps(Protocol):
    """Takes the local steps of each round."""

    def train(
        self, round_number: int, model: ModelBuffer, out: ModelBuffer
    ) -> StepReport:
        """Takes the steps of a round.

        Args:
            round_number: Counts from 1. Step s of round r is the learner's step
                (r - 1) * steps + s, each with a batch of its own.
            model: The model received, which the learner has loaded; stays as it is.
            out: Receives the pseudo-gradient in its parameters, and the statistics
                after the last step.

        Returns:
            Examples and loss, summed over all steps.
        """
        ...


class LocalTraining(LocalSteps):
    """Takes the local steps of each round with SGD.

    Everything it holds is made once, and none of it is kept from one round to the next:
    a round depends on the plan, the data, the model received and the round's number
    alone, so it can be redone to the same bits, by this node or by the party's next.
    That is also why the momentum begins at zero in every round.

    Args:
        learner: The task at work on the party's data.
        model: Of the layout that all models have; not kept.
        steps: Steps a round.
        optimizer: What takes them.
        rate: Its learning rate; a round's steps have one rate.
    """

    def __init__(
        self,
        learner: Learner,
        model: ModelBuffer,
        *,
        steps: int,
        optimizer: Sgd,
        rate: LearningRate,
    ) -> None:
        self._learner = learner
        self._steps = steps
        self._optimizer = optimizer
        self._rate = rate
        self._local = ModelBuffer(model.layout)
        self._state = tuple(
            np.empty_like(self._local.parameters) for _ in optimizer.slots
        )
        self._workspace = Workspace.of(optimizer, BLOCK)
        self._decay = WeightDecay(model.layout, optimizer.weight_decay, block=BLOCK)

    @override
    def train(
        self, round_number: int, model: ModelBuffer, out: ModelBuffer
    ) -> StepReport:
        """Takes the steps of a round; see `LocalSteps.train`."""
        local, learner = self._local, self._learner
        np.copyto(local.data, model.data)
        for slot, vector in zip(self._optimizer.slots, self._state, strict=True):
            vector.fill(self._optimizer.initial(slot))
        rate = self._rate.at(round_number)
        first = (round_number - 1) * self._steps + 1
        examples, loss_sum = 0, 0.0
        # A model that diverges is no fault of the arithmetic: the server says so.
        with np.errstate(over="ignore", invalid="ignore"):
            for number in range(first, first + self._steps):
                if number > first:
                    learner.load(local)
                report = learner.step(number, out)
                examples += report.examples
                loss_sum += report.loss_sum
                self._move(out, rate=rate, round_number=round_number)
            np.subtract(model.parameters, local.parameters, out=out.parameters)
        return StepReport(examples=examples, loss_sum=loss_sum)

    def _move(self, step: ModelBuffer, *, rate: float, round_number: int) -> None:
        """Moves the local model in place by one step; its blocks fit a core's cache."""
        for start in range(0, len(self._local.parameters), BLOCK):
            stop = min(start + BLOCK, len(self._local.parameters))
            new = self._workspace.first(stop - start)
            parameters = self._local.parameters[start:stop]
            state = tuple(vector[start:stop] for vector in self._state)
            self._optimizer.step(
                parameters,
                state,
                gradient=step.parameters[start:stop],
                decay=self._decay.block(start, stop),
                rate=rate,
                round_number=round_number,
                into=new,
            )
            for old, values in zip(
                (parameters, *state), (new.parameters, *new.state), strict=True
            ):
                old[:] = values
        np.copyto(self._local.statistics, step.statistics)


class TaskTraining(LocalSteps):
    """Takes the local steps of each round with the optimiser of the task.

    The optimiser is new in every round, for the reason that `LocalTraining` gives: what
    it gathers in a round would have to be kept, and moved with the party.

    Args:
        learner: The task at work on the party's data.
        steps: Steps a round.
        rate: What the optimiser is told; a round's steps have one rate.

    Raises:
        ConfigError: If the task has no optimiser (``task-optimizer``).
    """

    def __init__(
        self, learner: SteppingLearner, *, steps: int, rate: LearningRate
    ) -> None:
        self._learner = learner
        self._steps = steps
        self._rate = rate
        # A task without an optimiser is refused before the run, not in its first round.
        learner.begin_steps(rate=rate.at(1))

    @override
    def train(
        self, round_number: int, model: ModelBuffer, out: ModelBuffer
    ) -> StepReport:
        """Takes the steps of a round; see `LocalSteps.train`."""
        learner = self._learner
        learner.begin_steps(rate=self._rate.at(round_number))
        first = (round_number - 1) * self._steps + 1
        examples, loss_sum = 0, 0.0
        # As with SGD: the server tells of a model that diverged.
        with np.errstate(over="ignore", invalid="ignore"):
            for number in range(first, first + self._steps):
                report = learner.take_step(number)
                examples += report.examples
                loss_sum += report.loss_sum
            learner.read(out)
            np.subtract(model.parameters, out.parameters, out=out.parameters)
        return StepReport(examples=examples, loss_sum=loss_sum)


def local_training(
    training: Training, learner: Learner, model: ModelBuffer
) -> LocalSteps | None:
    """Returns the local steps that a plan wants in each round, if it wants any.

    Args:
        training: The plan's section.
        learner: The task at work on the party's data.
        model: Of the layout that all models have; not kept.

    Raises:
        ConfigError: If the plan wants the task's optimiser, and the task has none
            (``task-optimizer``).
    """
    settings, steps = training.local_optimizer, training.local_steps
    if settings is None or steps is None:
        return None
    rate = LearningRate(peak=settings.learning_rate, schedule=schedule_of(training))
    if settings.name == "task":
        return TaskTraining(_stepping(learner), steps=steps, rate=rate)
    return LocalTraining(
        learner,
        model,
        steps=steps,
        optimizer=Sgd(momentum=settings.momentum, weight_decay=settings.weight_decay),
        rate=rate,
    )


def _stepping(learner: Learner) -> SteppingLearner:
    if not isinstance(learner, SteppingLearner):
        raise ConfigError(
            "the plan wants the task's own optimiser, and the task has none",
            code="task-optimizer",
            expected="a learner with begin_steps, take_step and read",
            got=type(learner).__name__,
            remedy="Add them to the task, or set local_optimizer.name = 'sgd'.",
        )
    return learner
