"""Softmax regression in plain NumPy: the smallest task that is a whole one.

    scores = (image / 255 - mean) @ weights + bias

`weights` and `bias` are trained; `mean` is a statistic, the running mean of the images,
which the parties average. Usable as a plan's `task.py`: class Softmax, options
`features` and `classes`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cloister.errors import StorageError
from cloister.federation.layout import Layout, ModelBuffer, layout_of
from cloister.federation.sampling import Sampler
from cloister.federation.task import Evaluation, LearnerSettings, StepReport
from cloister.storage.records import Batch, DataSource, Field, Records, Schema

MEAN_MEMORY = 0.9
Array = NDArray[np.float64]


class Softmax:
    """The task.

    Args:
        features: Values of one image.
        classes: Number of labels.
    """

    def __init__(self, features: int, classes: int) -> None:
        self.features = features
        self.classes = classes

    def schema(self) -> Schema:
        return Schema(
            fields=(
                Field(name="label", dtype="uint8", below=self.classes),
                Field(name="image", dtype="uint8", shape=(self.features,)),
            )
        )

    def layout(self) -> Layout:
        return layout_of(
            {
                "weights": np.empty((self.features, self.classes)),
                "bias": np.empty(self.classes),
            },
            {"mean": np.empty(self.features)},
            without_decay=["bias"],
        )

    def initial_model(self, *, seed: int) -> ModelBuffer:
        generator = np.random.default_rng(seed)
        model = ModelBuffer(self.layout())
        model.fill(
            {
                "weights": generator.normal(0, 0.01, (self.features, self.classes)),
                "bias": np.zeros(self.classes),
                "mean": np.zeros(self.features),
            }
        )
        return model

    def export(self, model: ModelBuffer) -> dict[str, NDArray[np.generic]]:
        return {name: array.copy() for name, array in model.arrays().items()}

    def load_exported(self, arrays: Mapping[str, NDArray[np.generic]]) -> ModelBuffer:
        model = ModelBuffer(self.layout())
        try:
            model.fill(arrays)
        except (KeyError, ValueError) as error:
            raise StorageError(
                "the arrays are not this task's model", code="model-foreign"
            ) from error
        return model

    def learner(self, source: DataSource, settings: LearnerSettings) -> SoftmaxLearner:
        return SoftmaxLearner(self, source, settings)


class SoftmaxLearner:
    """The task at work on one party's data."""

    def __init__(
        self, task: Softmax, source: DataSource, settings: LearnerSettings
    ) -> None:
        self._model = ModelBuffer(task.layout())
        self._train = source.split("train")
        self._held_out = source.split("held-out")
        self._sampler = Sampler(
            examples=len(self._train),
            batch_size=settings.batch_size,
            seed=settings.seed,
            party=settings.party,
        )

    def load(self, model: ModelBuffer) -> None:
        self._model.data[:] = model.data

    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        inputs, labels = _arrays(self._train.read(self._sampler.indices(round_number)))
        centred, probabilities = self._forward(inputs)
        loss = _losses(probabilities, labels)
        # The gradient of the loss by the scores.
        probabilities[np.arange(len(labels)), labels] -= 1
        by_score = probabilities / len(labels)
        mean = self._model.arrays()["mean"]
        out.fill(
            {
                "weights": centred.T @ by_score,
                "bias": by_score.sum(axis=0),
                "mean": MEAN_MEMORY * mean + (1 - MEAN_MEMORY) * inputs.mean(axis=0),
            }
        )
        return StepReport(examples=len(labels), loss_sum=float(loss.sum()))

    def evaluate(self) -> Evaluation:
        inputs, labels = _arrays(_all(self._held_out))
        _, probabilities = self._forward(inputs)
        right = probabilities.argmax(axis=1) == labels
        return Evaluation(
            examples=len(labels),
            sums={
                "accuracy": float(right.sum()),
                "loss": float(_losses(probabilities, labels).sum()),
            },
        )

    def _forward(self, inputs: Array) -> tuple[Array, Array]:
        arrays = self._model.arrays()
        centred = inputs - arrays["mean"]
        scores = centred @ arrays["weights"].astype(np.float64) + arrays["bias"]
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        return centred, exponentials / exponentials.sum(axis=1, keepdims=True)


def _arrays(batch: Batch) -> tuple[Array, NDArray[np.int64]]:
    return batch["image"].astype(np.float64) / 255, batch["label"].astype(np.int64)


def _all(records: Records) -> Batch:
    return records.read(np.arange(len(records)))


def _losses(probabilities: Array, labels: NDArray[np.int64]) -> Array:
    chosen: Array = probabilities[np.arange(len(labels)), labels]
    return -np.log(chosen)
