"""How a plan trains, in words: a round, who takes part in it, and the optimisers."""

from __future__ import annotations

from cloister.plan.plan import Plan
from cloister.plan.training import (
    AdagradOptimizer,
    AdamOptimizer,
    ConstantSchedule,
    CosineSchedule,
    CustomOptimizer,
    LocalOptimizer,
    Optimizer,
    PolySchedule,
    Schedule,
    SgdOptimizer,
    StepSchedule,
    Training,
    YogiOptimizer,
)

_WIRES = {
    "float32": "Models and updates travel exactly, as float32.",
    "bfloat16": "Models and updates travel rounded to bfloat16: half the bytes, and"
    " another result.",
}


def training_in_words(plan: Plan) -> list[str]:
    """Returns how a plan trains, line by line."""
    training = plan.training
    return [
        *_rounds(training),
        *_initial(training),
        *_participants(plan),
        _contributors(plan.least_contributors),
        *_optimizers(training),
        _WIRES[training.wire],
        f"The task is {plan.task.class_} in {plan.task.file}"
        f" with {dict(plan.task.options)}.",
        *_own_strategy(training),
    ]


def _rounds(training: Training) -> list[str]:
    rounds, batch = training.rounds, training.batch_size
    if training.mode == "sync-sgd":
        return [
            f"{rounds} rounds of synchronous SGD (sync-sgd), {batch} examples a worker"
            f" and round, in {training.precision}."
        ]
    return [
        f"{rounds} rounds of federated averaging (fedavg). In each, a worker takes"
        f" {training.local_steps} local steps",
        f"of {batch} examples, in {training.precision}, and sends by how much they"
        " moved its model.",
    ]


def _initial(training: Training) -> list[str]:
    initial = training.initial
    if initial is None:
        return []
    return [
        f"It starts from the weights in {initial.file}, whose SHA-256 is",
        f"  {initial.sha256}.",
    ]


def _participants(plan: Plan) -> list[str]:
    """Says who has a seat, and who may be left out."""
    rounds, seats = plan.rounds, plan.seats
    sampled = rounds.sample is not None
    who = (
        f"{seats} of {len(plan.workers)} workers have a seat in each round"
        if sampled
        else f"All {seats} workers have a seat in every round"
    )
    if rounds.quorum == "all":
        drawn = " They are drawn by the seed: anybody can say who." if sampled else ""
        return [f"{who}, and it waits for each of them.{drawn}"]
    drawn = "They are drawn by the seed among those who are there." if sampled else ""
    return [
        f"{who}. {drawn}".rstrip(),
        f"After {rounds.deadline_seconds} seconds a round ends with those who came in"
        f" time, if they are {rounds.quorum} at least; the others are left out of it.",
        "So the bits of the result depend on who came in time, and the host can hold"
        " back whom it likes.",
    ]


def _contributors(least: int) -> str:
    return (
        f"Every mean is of {least} updates at least."
        if least > 1
        else "There is one worker: every mean is of its update alone."
    )


def _optimizers(training: Training) -> list[str]:
    server, course = _server(training.optimizer), _course(training.schedule)
    if training.local_optimizer is None:
        return [f"The server steps along the mean gradient with {server}, {course}."]
    return [
        f"A worker steps with {_local(training.local_optimizer)}, {course}.",
        "The server takes the mean of all moves for a gradient and steps with"
        f" {server}, the same in every round.",
    ]


def _server(optimizer: Optimizer) -> str:
    rate = f"rate {optimizer.learning_rate:g}"
    if isinstance(optimizer, CustomOptimizer):
        return f"the plan's own strategy {optimizer.class_}, {rate}"
    return f"{_kind(optimizer)}, weight decay {optimizer.weight_decay:g}, {rate}"


def _kind(
    optimizer: SgdOptimizer | AdagradOptimizer | AdamOptimizer | YogiOptimizer,
) -> str:
    match optimizer:
        case SgdOptimizer():
            nesterov = " (Nesterov's)" if optimizer.nesterov else ""
            return f"SGD, momentum {optimizer.momentum:g}{nesterov}"
        case AdagradOptimizer():
            return f"Adagrad, epsilon {optimizer.epsilon:g}"
        case AdamOptimizer():
            return f"Adam, {_moments(optimizer)}"
        case YogiOptimizer():
            return f"Yogi, {_moments(optimizer)}"


def _moments(optimizer: AdamOptimizer | YogiOptimizer) -> str:
    return (
        f"betas {optimizer.beta1:g} and {optimizer.beta2:g},"
        f" epsilon {optimizer.epsilon:g}"
    )


def _local(optimizer: LocalOptimizer) -> str:
    if optimizer.name == "task":
        rate = f"rate {optimizer.learning_rate:g}"
        return f"the task's own optimiser, new in every round, {rate}"
    return (
        f"SGD, momentum {optimizer.momentum:g}, weight decay"
        f" {optimizer.weight_decay:g}, rate {optimizer.learning_rate:g}"
    )


def _course(schedule: Schedule) -> str:
    rounds = schedule.warmup_rounds
    return f"{_fall(schedule)}{f' after {rounds} rounds of warm-up' if rounds else ''}"


def _fall(schedule: Schedule) -> str:
    match schedule:
        case ConstantSchedule():
            return "the same in every round"
        case StepSchedule():
            return f"times {schedule.factor:g} every {schedule.every_rounds} rounds"
        case CosineSchedule():
            return "falling along half a cosine"
        case PolySchedule():
            return (
                f"falling to {schedule.end_fraction:g} of it along a curve of the power"
                f" {schedule.power:g}"
            )


def _own_strategy(training: Training) -> list[str]:
    own = training.own_strategy
    if own is None:
        return []
    return [
        f"CAUTION: the strategy is the plan's own: {own.class_} in {own.file} with"
        f" {dict(own.options)}.",
        "The server runs it on every round's mean. Every node measures it, so read it,"
        " as the task, before you sign.",
    ]
