"""What a plan fixes about the course of its run."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.federation.layout import ModelBuffer
from cloister.federation.strategies.schedules import LearningRate
from cloister.federation.strategies.sgd import Sgd
from cloister.plan.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What the plan fixes about the run.

    Attributes:
        run_id: The run.
        parties: The workers, in plan order.
        rounds: Rounds of training.
        evaluate_every: The model is evaluated after every so many rounds.
        examples: Examples a worker uses in one step.
        optimizer: The server's optimiser.
        learning_rate: Its schedule.
    """

    run_id: str
    parties: tuple[str, ...]
    rounds: int
    evaluate_every: int
    examples: int
    optimizer: Sgd
    learning_rate: LearningRate


def course_of(plan: Plan, model: ModelBuffer) -> Course:
    """Returns what the plan fixes about the run of a model."""
    training = plan.training
    return Course(
        run_id=plan.run_id,
        parties=tuple(p.name for p in plan.workers),
        rounds=training.rounds,
        evaluate_every=plan.rounds.evaluate_every,
        examples=training.batch_size,
        optimizer=Sgd(
            momentum=training.optimizer.momentum,
            weight_decay=training.optimizer.weight_decay,
            decay_mask=model.layout.decay_mask(),
        ),
        learning_rate=LearningRate(
            name=training.schedule.name,
            peak=training.optimizer.learning_rate,
            rounds=training.rounds,
            warmup_rounds=training.schedule.warmup_rounds,
        ),
    )
