"""What `cloister init` and `cloister demo` train, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cloister.workloads
from cloister.plan.training import Mode, Wire

LOCAL_STEPS = 8
_IMAGE_TASK = Path(cloister.workloads.__file__).parent / "image_classification.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to train, and how.

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
    """

    name: str
    task: Path
    task_class: str
    options: Mapping[str, bool | int | float]
    rounds: int
    batch_size: int
    precision: str
    learning_rate: float
    weight_decay: float
    warmup_rounds: int
    evaluate_every: int
    local_steps: int | None = None
    wire: Wire = "float32"

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
)
