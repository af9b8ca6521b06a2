"""Softmax regression whose learner predicts, and writes its network down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from examples.softmax.task import Softmax, SoftmaxLearner
from numpy.typing import NDArray
from typing_extensions import override

from cloister.federation.layout import ModelBuffer
from cloister.federation.task import LearnerSettings
from cloister.storage.records import DataSource

Item = Mapping[str, NDArray[np.generic]]
_ROWS = 32


class Predicting(Softmax):
    """The task."""

    @override
    def learner(
        self, source: DataSource, settings: LearnerSettings
    ) -> PredictingSoftmax:
        return PredictingSoftmax(self, source, settings)


class PredictingSoftmax(SoftmaxLearner):
    """The task at work."""

    def predict(self) -> Iterator[Item]:
        for first in range(0, len(self._held_out), _ROWS):
            at = np.arange(first, min(first + _ROWS, len(self._held_out)))
            images = self._held_out.read(at)["image"].astype(np.float64) / 255
            _, chances = self._forward(images)
            yield {
                "label": chances.argmax(axis=1).astype(np.uint8),
                "score": chances.astype(np.float32),
            }

    def graph(self) -> bytes:
        return graph_of(self._model)


def graph_of(model: ModelBuffer) -> bytes:
    """Returns what a learner writes down when `model` is loaded."""
    return b"softmax of a line: " + model.data.tobytes()
