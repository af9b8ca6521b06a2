"""A task in plain NumPy, small and quick, whose values are easy to recognise.

Softmax regression over pixels. Beside the weights it carries a statistic that never
changes, the canary: eight-byte patterns that must appear in no file in the clear.
"""

import sys
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from cloister.federation.layout import ModelBuffer, layout_of
from cloister.federation.sampling import Sampler
from cloister.federation.task import Evaluation, LearnerSettings, StepReport
from cloister.storage.records import DataSource, Field, Schema

CLASSES, IMAGE, PIXELS = 10, (3, 8, 8), 192
CANARY = float.fromhex("0x1.ca4a7ca4a7ca4p+5")
_ALL = slice(None)

Floats = NDArray[np.floating]


class Canary:
    """The task: no options."""

    def schema(self) -> Schema:
        label = Field(name="label", dtype="uint8", below=CLASSES)
        pixels = Field(name="image", dtype="uint8", shape=IMAGE)
        return Schema(fields=(label, pixels))

    def initial_model(self, *, seed: int) -> ModelBuffer:
        random = np.random.Generator(np.random.PCG64(seed))
        values = {"weight": 0.01 * random.standard_normal((CLASSES, PIXELS))}
        canary = {"canary": np.full(16, CANARY)}
        model = ModelBuffer(layout_of(values, canary))
        model.fill(values | canary)
        return model

    def export(self, model: ModelBuffer) -> dict[str, NDArray[np.generic]]:
        return {name: np.array(array) for name, array in model.arrays().items()}

    def load_exported(self, arrays: Mapping[str, NDArray[np.generic]]) -> ModelBuffer:
        model = self.initial_model(seed=0)
        model.fill(arrays)
        return model

    def learner(self, source: DataSource, settings: LearnerSettings) -> "CanaryLearner":
        return CanaryLearner(source, settings)


class CanaryLearner:
    """Softmax regression on one party's records."""

    def __init__(self, source: DataSource, settings: LearnerSettings) -> None:
        self._train = source.split("train")
        self._held_out = source.split("held-out")
        self._sampler = Sampler(
            examples=len(self._train),
            batch_size=settings.batch_size,
            seed=settings.seed,
            party=settings.party,
        )
        self._weight: Floats = np.zeros((CLASSES, PIXELS))

    def load(self, model: ModelBuffer) -> None:
        self._weight = model.arrays()["weight"].astype(np.float32)

    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        # No event: whoever reads events from the node's stdout fails if it comes there.
        sys.stdout.write("what an attested node's task prints\n")
        batch = self._train.read(self._sampler.indices(round_number))
        images, labels = _scaled(batch["image"]), batch["label"]
        chances = self._chances(images)
        loss = -np.log(chances[np.arange(len(labels)), labels]).sum()
        chances[np.arange(len(labels)), labels] -= 1
        out.arrays()["weight"][_ALL] = chances.T @ images / len(labels)
        out.arrays()["canary"][_ALL] = CANARY
        return StepReport(examples=len(labels), loss_sum=float(loss))

    def evaluate(self) -> Evaluation:
        batch = self._held_out.read(np.arange(len(self._held_out)))
        guesses = self._chances(_scaled(batch["image"])).argmax(axis=1)
        right = float((guesses == batch["label"]).sum())
        return Evaluation(examples=len(guesses), sums={"accuracy": right, "loss": 0.0})

    def predict(self) -> Iterator[Mapping[str, NDArray[np.generic]]]:
        for first in range(0, len(self._held_out), 64):
            at = np.arange(first, min(first + 64, len(self._held_out)))
            chances = self._chances(_scaled(self._held_out.read(at)["image"]))
            yield {"label": chances.argmax(axis=1).astype(np.uint8), "score": chances}

    def graph(self) -> bytes:
        return b"softmax of a line: " + self._weight.tobytes()

    def _chances(self, images: Floats) -> Floats:
        scores = images @ self._weight.T
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances: Floats = powers / powers.sum(axis=1, keepdims=True)
        return chances


def _scaled(pixels: NDArray[np.generic]) -> Floats:
    rows = pixels.reshape(len(pixels), PIXELS)
    return rows.astype(np.float32) / np.float32(240)
