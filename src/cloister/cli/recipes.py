"""What `cloister init` and `cloister demo` train, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import cloister.workloads
from cloister.cli.recipe_data import (
    Dealer,
    deal_cifar,
    deal_digits,
    deal_mnist,
    deal_tumours,
)
from cloister.federation.task import Precision
from cloister.plan.training import Mode, Wire
from cloister.plan.values import Option

LOCAL_STEPS = 8
_WORKLOADS = Path(cloister.workloads.__file__).parent
_IMAGE_TASK = _WORKLOADS / "image_classification.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to train, on what, and how.

    Attributes:
        name: The plan's name.
        task: The task file; copied beside the plan as ``task.py``.
        task_class: The class in it.
        options: The task's options.
        rounds: Rounds of training.
        batch_size: Examples a worker and step.
        precision: ``float32`` or ``bfloat16``.
        learning_rate: Its peak.
        weight_decay: Of the optimiser that descends on data.
        warmup_rounds: Rounds until the peak.
        evaluate_every: Rounds between evaluations.
        local_steps: Steps of a worker in a round of fedavg; None in sync-sgd.
        wire: How parameters and updates travel.
        momentum: Of the optimiser that descends on data.
        local_optimizer: In fedavg, what takes the local steps: ``sgd``, or the
            optimiser of the ``task``.
        schedule: The learning rate's after the warm-up, as the plan names it.
        schedule_settings: The schedule's other values in the plan.
        threads: Of each worker.
        seed: First weights and the examples of each step.
        deal: What to train on, and who gets which of it.
        workers: Who trains, unless somebody says otherwise.
        initial: The model to start from, as the task exports one; None: the task's.
    """

    name: str
    task: Path
    task_class: str
    options: Mapping[str, Option]
    rounds: int
    batch_size: int
    precision: Precision
    learning_rate: float
    weight_decay: float
    warmup_rounds: int
    evaluate_every: int
    local_steps: int | None = None
    wire: Wire = "float32"
    momentum: float = 0.9
    local_optimizer: str = "sgd"
    schedule: str = "cosine"
    schedule_settings: Mapping[str, Option] = field(default_factory=dict)
    threads: int = 1
    seed: int = 7
    deal: Dealer = deal_digits
    workers: tuple[str, ...] = ("alice", "bob")
    initial: Mapping[str, NDArray[np.generic]] | None = None

    @property
    def mode(self) -> Mode:
        """What a worker does in a round."""
        return "sync-sgd" if self.local_steps is None else "fedavg"

    def averaged(self, *, local_steps: int) -> Recipe:
        """Returns the recipe for fedavg: as many steps, in fewer rounds."""
        return replace(
            self,
            local_steps=local_steps,
            rounds=max(1, self.rounds // local_steps),
            warmup_rounds=self.warmup_rounds // local_steps,
            evaluate_every=max(1, self.evaluate_every // local_steps),
        )

    def for_rounds(self, rounds: int) -> Recipe:
        """Returns the recipe for another number of rounds."""
        return replace(
            self, rounds=rounds, warmup_rounds=min(self.warmup_rounds, rounds)
        )


DIGITS = Recipe(
    name="digits",
    task=_IMAGE_TASK,
    task_class="ImageClassification",
    options={"depth": 56, "image_size": 8, "crop_padding": 1, "flip": False},
    rounds=200,
    batch_size=64,
    precision="float32",
    learning_rate=0.1,
    weight_decay=2e-4,
    warmup_rounds=20,
    evaluate_every=40,
)
# For `--data` without a recipe: minutes, to see that it learns.
CIFAR = Recipe(
    name="cifar-10",
    task=_IMAGE_TASK,
    task_class="ImageClassification",
    options={"depth": 56, "image_size": 32, "crop_padding": 2, "flip": True},
    rounds=220,
    batch_size=64,
    precision="bfloat16",
    learning_rate=0.2,
    weight_decay=2e-4,
    warmup_rounds=20,
    evaluate_every=55,
    deal=deal_cifar,
)
# With two workers: 18 epochs of 10,000 images, or 3.6 of all 50,000.
CIFAR_RESNET_56 = replace(
    CIFAR,
    options={"depth": 56, "image_size": 32, "crop_padding": 4, "flip": True},
    rounds=1400,
    weight_decay=5e-4,
    warmup_rounds=70,
    evaluate_every=200,
)
CIFAR_RESNET_50 = replace(
    CIFAR_RESNET_56,
    name="cifar-10-resnet-50",
    options={
        "network": "resnet-50",
        "image_size": 32,
        "crop_padding": 4,
        "flip": True,
    },
    learning_rate=0.1,
)
# Plinius' network and settings: 500 batches of 128 by one worker.
MNIST = Recipe(
    name="mnist",
    task=_WORKLOADS / "darknet_classification.py",
    task_class="DarknetClassification",
    options={},
    rounds=500,
    batch_size=128,
    precision="bfloat16",
    learning_rate=0.1,
    weight_decay=5e-4,
    warmup_rounds=0,
    # Its batch norm remembers long: earlier evaluations mean nothing.
    evaluate_every=500,
    schedule="poly",
    schedule_settings={"power": 4.0},
    deal=deal_mnist,
    workers=("alice",),
)
BREAST_CANCER = Recipe(
    name="breast-cancer",
    task=_WORKLOADS / "tabular.py",
    task_class="TabularClassification",
    options={"features": 30, "classes": 2},
    rounds=150,
    batch_size=16,
    precision="float32",
    learning_rate=0.3,
    momentum=0.0,
    weight_decay=0.0,
    warmup_rounds=0,
    evaluate_every=50,
    schedule="constant",
    deal=deal_tumours,
    workers=("north", "south", "west"),
)
RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (DIGITS, CIFAR_RESNET_56, CIFAR_RESNET_50, MNIST, BREAST_CANCER)
}
