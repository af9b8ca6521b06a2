"""What a plan fixes about the course of its run."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.federation.own_strategy import OwnStrategy
from cloister.federation.rounds.machine import RunRules
from cloister.federation.staging import PLACES
from cloister.federation.strategies.optimizers import (
    Adagrad,
    Adam,
    Elementwise,
    Sgd,
    Yogi,
)
from cloister.federation.strategies.schedules import (
    Constant,
    Cosine,
    LearningRate,
    Poly,
    Schedule,
    Step,
)
from cloister.federation.strategies.strategy import Strategy
from cloister.plan.plan import Plan
from cloister.plan.training import (
    AdagradOptimizer,
    AdamOptimizer,
    ConstantSchedule,
    CosineSchedule,
    CustomOptimizer,
    PolySchedule,
    SgdOptimizer,
    StepSchedule,
    Training,
    Wire,
    YogiOptimizer,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What the plan fixes about the run.

    Attributes:
        run_id: The run.
        parties: The workers, in plan order.
        seats: How many of them take part in a round.
        quorum: The fewest updates a round may close with once its deadline has passed;
            None if every seat must contribute.
        deadline_seconds: From a round's beginning; None if it has none.
        rounds: Rounds of training.
        evaluate_every: The model is evaluated after every so many rounds.
        examples: Examples a worker uses in one round.
        optimizer: The server's: what it makes of the mean.
        rate: The rate that descends on data, by the plan's schedule: the server's in
            sync-sgd, the workers' own in fedavg.
        seed: What the draws of seats depend on.
        wire: How parameters and updates travel.
        mirror_every: The state is kept after each round whose number this divides.
        server_peak: In fedavg the server's rate in every round; None in sync-sgd.
        by_identity: Whether a worker proves nothing of its code, and may send anything.
    """

    run_id: str
    parties: tuple[str, ...]
    seats: int
    quorum: int | None
    deadline_seconds: float | None
    rounds: int
    evaluate_every: int
    examples: int
    optimizer: Elementwise | OwnStrategy
    rate: LearningRate
    seed: int
    wire: Wire
    mirror_every: int = 1
    server_peak: float | None = None
    by_identity: bool = False

    @property
    def exact_sum(self) -> bool:
        """Whether the sum of updates is exact, and so does not depend on their order.

        It has to be with a number quorum, where they are added as they come; and where
        workers may send anything: in a float32 sum two huge updates that cancel each
        other out round all away that was added before them, so that two colluders
        could get the one update that comes after them.
        """
        return self.quorum is not None or self.by_identity

    @property
    def at_once(self) -> bool:
        """Whether there is a place for everybody's update, so that none need wait.

        For every party's, not every seat's: seats may be given once more while those
        who had them still send.
        """
        return len(self.parties) <= PLACES

    @property
    def rules(self) -> RunRules:
        """Who takes part, for the machine that carries the run."""
        return RunRules(
            parties=self.parties,
            seats=self.seats,
            quorum=self.quorum,
            rounds=self.rounds,
            seed=self.seed,
        )

    def server_rate(self, round_number: int) -> float:
        """Returns the rate of the server's step in a round, counted from 1."""
        if self.server_peak is None:
            return self.rate.at(round_number)
        return self.server_peak


def course_of(plan: Plan, *, own_strategy: Strategy | None = None) -> Course:
    """Returns what the plan fixes about its run.

    Args:
        plan: The plan.
        own_strategy: The plan's own, loaded; None where it names a built-in optimiser.
    """
    training, rounds = plan.training, plan.rounds
    local = training.local_optimizer
    peak = training.optimizer.learning_rate
    return Course(
        run_id=plan.run_id,
        parties=tuple(p.name for p in plan.workers),
        seats=plan.seats,
        quorum=None if rounds.quorum == "all" else rounds.quorum,
        deadline_seconds=rounds.deadline_seconds,
        rounds=training.rounds,
        evaluate_every=rounds.evaluate_every,
        examples=training.batch_size * (training.local_steps or 1),
        optimizer=_optimizer(plan, own_strategy),
        rate=LearningRate(
            peak=peak if local is None else local.learning_rate,
            schedule=schedule_of(training),
        ),
        server_peak=None if local is None else peak,
        seed=training.seed,
        wire=training.wire,
        mirror_every=rounds.mirror_every,
        by_identity=any(p.admit == "identity" for p in plan.workers),
    )


def schedule_of(training: Training) -> Schedule:
    """Returns the plan's schedule, of the rate that descends on data."""
    schedule, rounds = training.schedule, training.rounds
    warmup_rounds = schedule.warmup_rounds
    match schedule:
        case ConstantSchedule():
            return Constant(warmup_rounds=warmup_rounds)
        case StepSchedule():
            return Step(
                every_rounds=schedule.every_rounds,
                ratio=schedule.factor,
                warmup_rounds=warmup_rounds,
            )
        case CosineSchedule():
            return Cosine(rounds=rounds, warmup_rounds=warmup_rounds)
        case PolySchedule():
            return Poly(
                rounds=rounds,
                power=schedule.power,
                end_fraction=schedule.end_fraction,
                warmup_rounds=warmup_rounds,
            )


def _optimizer(plan: Plan, own_strategy: Strategy | None) -> Elementwise | OwnStrategy:
    named = plan.training.optimizer
    if isinstance(named, CustomOptimizer):
        if own_strategy is None:
            raise RuntimeError("the plan's own strategy was not loaded")
        # Guarded here, so that nothing runs it without.
        return OwnStrategy(
            strategy=own_strategy, filename=named.file, simulated=plan.simulated
        )
    if own_strategy is not None:
        raise RuntimeError("the plan has no strategy of its own")
    return _built_in(named)


def _built_in(
    named: SgdOptimizer | AdagradOptimizer | AdamOptimizer | YogiOptimizer,
) -> Elementwise:
    """Returns the built-in optimiser that a plan names."""
    match named:
        case SgdOptimizer():
            return Sgd(
                momentum=named.momentum,
                nesterov=named.nesterov,
                weight_decay=named.weight_decay,
            )
        case AdagradOptimizer():
            return Adagrad(epsilon=named.epsilon, weight_decay=named.weight_decay)
        case AdamOptimizer():
            return Adam(
                beta1=named.beta1,
                beta2=named.beta2,
                epsilon=named.epsilon,
                weight_decay=named.weight_decay,
            )
        case YogiOptimizer():
            return Yogi(
                beta1=named.beta1,
                beta2=named.beta2,
                epsilon=named.epsilon,
                weight_decay=named.weight_decay,
            )
