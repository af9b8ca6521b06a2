"""What federated training is held against: SGD in a loop with all data in one place."""

from __future__ import annotations

import math

import numpy as np

from cloister.federation.layout import ModelBuffer
from cloister.federation.task import Evaluation, LearnerSettings, Task
from cloister.storage.records import DataSource

WEIGHT_DECAY = 1e-4


def train_centrally(  # noqa: PLR0913 - all that decides the result
    task: Task,
    source: DataSource,
    *,
    batch_size: int,
    steps: int,
    learning_rate: float,
    momentum: float,
    seed: int = 7,
) -> Evaluation:
    """Trains on all data, with a rate that falls along half a cosine; evaluates.

    Args:
        task: What to train.
        source: All data.
        batch_size: Examples a step.
        steps: How many.
        learning_rate: Of the first step.
        momentum: Share of the last step that stays.
        seed: Of first weights and batches.
    """
    model = task.initial_model(seed=seed)
    settings = LearnerSettings(
        party="everybody",
        batch_size=batch_size,
        seed=seed,
        threads=1,
        precision="float32",
    )
    learner = task.learner(source, settings)
    out = ModelBuffer(model.layout)
    decay = WEIGHT_DECAY * model.layout.decay_mask()
    velocity = np.zeros_like(model.parameters)
    for number in range(1, steps + 1):
        learner.load(model)
        learner.step(number, out)
        rate = learning_rate * 0.5 * (1 + math.cos(math.pi * (number - 1) / steps))
        velocity = momentum * velocity + out.parameters + decay * model.parameters
        model.parameters[:] -= np.float32(rate) * velocity
        model.statistics[:] = out.statistics
    learner.load(model)
    return learner.evaluate()
