"""A task whose learner keeps something from round to round: the momentum of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from examples.softmax.task import Softmax, SoftmaxLearner
from numpy.typing import NDArray
from tests.support.plan_tree import CLASSES, FEATURES
from typing_extensions import override

from cloister.federation.layout import ModelBuffer
from cloister.federation.task import LearnerSettings, StepReport
from cloister.storage.records import DataSource


class Remembering(Softmax):
    """The plan's task, with momentum in each worker.

    Args:
        before: What is done in the learner's thread, by round.
    """

    def __init__(self, before: Mapping[int, Callable[[], None]] = {}) -> None:
        super().__init__(FEATURES, CLASSES)
        self.before = before

    @override
    def learner(
        self, source: DataSource, settings: LearnerSettings
    ) -> RememberingLearner:
        return RememberingLearner(self, source, settings)


class RememberingLearner(SoftmaxLearner):
    """The task at work; a `StatefulLearner`."""

    def __init__(
        self, task: Remembering, source: DataSource, settings: LearnerSettings
    ) -> None:
        super().__init__(task, source, settings)
        self._before = task.before
        size = len(ModelBuffer(task.layout()).parameters)
        self.velocity = np.zeros(size, np.float32)
        self.steps = np.zeros((), np.int64)

    @override
    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        self._before.get(round_number, lambda: None)()
        report = super().step(round_number, out)
        self.velocity[:] = 0.5 * self.velocity + out.parameters
        self.steps += 1
        out.parameters[:] = self.velocity
        return report

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        return {"velocity": self.velocity, "steps": self.steps}

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self.velocity[:] = arrays["velocity"]
        self.steps[...] = arrays["steps"]
