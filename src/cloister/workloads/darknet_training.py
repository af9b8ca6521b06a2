"""How a Darknet configuration wants its network trained, in the words of a plan.

Darknet's SGD is the plan's: momentum on gradient and decay together, decay on weights
alone and not on biases and scales, the mean over the batch. Its learning rates are the
plan's too, one step later: Darknet counts the step that it is about to take as done.
Of N steps, its ``poly`` has the factors (1 - 1/N)^p down to 0 where a plan has 1 down
to (1/N)^p, so a plan's last step still does something.

Batches differ on purpose. Darknet draws each image of a batch by itself, so of 500
batches some images are never in one; a worker goes through its records in random order,
one epoch after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cloister.errors import ConfigError
from cloister.plan.training import (
    ConstantSchedule,
    PolySchedule,
    Schedule,
    SgdOptimizer,
    StepSchedule,
)
from cloister.plan.values import Fraction, Rate
from cloister.workloads.darknet_config import DarknetConfig, Net
from cloister.workloads.darknet_lines import line_error


@dataclass(frozen=True, slots=True, kw_only=True)
class DarknetTraining:
    """What a configuration says of a plan's ``[training]``.

    Attributes:
        batch_size: Examples of a step, of all workers together.
        rounds: Steps, one a round with mode ``sync-sgd``.
        optimizer: The server's.
        schedule: Of its rate.
    """

    batch_size: int
    rounds: int
    optimizer: SgdOptimizer
    schedule: Schedule


def training_of(config: DarknetConfig) -> DarknetTraining:
    """Returns the training that a configuration describes.

    With several workers each takes its share of the batch.

    Raises:
        ConfigError: If a plan cannot say it: another policy, a rise that is no straight
            line, a value beyond the plan's limits (``darknet-config``).
    """
    net = config.net
    optimizer = SgdOptimizer(
        learning_rate=_checked(net, "learning_rate", net.learning_rate, Rate),
        momentum=_checked(net, "momentum", net.momentum, Fraction),
        weight_decay=_checked(net, "decay", net.decay, Fraction),
    )
    return DarknetTraining(
        batch_size=net.batch,
        rounds=_rounds(net),
        optimizer=optimizer,
        schedule=_schedule(net),
    )


def _rounds(net: Net) -> int:
    if net.max_batches:
        return net.max_batches
    raise _error(
        net,
        "max_batches",
        "the configuration does not say how long to train",
        expected="max_batches of 1 or more",
        got="none",
    )


def _schedule(net: Net) -> Schedule:
    warmup_rounds = _warmup_rounds(net)
    match net.policy:
        case "constant":
            return ConstantSchedule(warmup_rounds=warmup_rounds)
        case "poly":
            wanted: dict[str, object] = {"name": "poly", "power": net.power}
            return _made(net, "power", wanted)
        case "step":
            return _falling(net, "scale", net.scale, every_rounds=net.step)
        case "exp":
            return _falling(net, "gamma", net.gamma, every_rounds=1)
        case _:
            raise _error(
                net,
                "policy",
                "no schedule of a plan is like this policy",
                expected="constant, poly, step or exp",
                got=net.policy,
            )


def _falling(net: Net, key: str, factor: float, *, every_rounds: int) -> Schedule:
    if factor == 1:
        return ConstantSchedule()
    wanted: dict[str, object] = {"name": "step", "factor": factor}
    return _made(net, key, wanted | {"every_rounds": every_rounds})


def _warmup_rounds(net: Net) -> int:
    """Returns the rounds of a linear rise; any other is refused."""
    if not net.burn_in:
        return 0
    if net.power == 1 and net.policy == "constant":
        return net.burn_in
    raise _error(
        net,
        "burn_in",
        "no schedule of a plan rises like this",
        expected="burn_in only with policy=constant and power=1, a straight line",
        got=f"policy={net.policy} and power={net.power:g}",
    )


def _checked(net: Net, key: str, value: float, kind: object) -> float:
    """Returns `value` if the plan's `kind` takes it."""
    try:
        checked: float = msgspec.convert(value, kind)
    except msgspec.ValidationError as cause:
        raise _refused(net, key, value) from cause
    return checked


def _made(net: Net, key: str, wanted: dict[str, object]) -> Schedule:
    try:
        return msgspec.convert(wanted, PolySchedule | StepSchedule)
    except msgspec.ValidationError as cause:
        raise _refused(net, key, wanted.get("power", wanted.get("factor"))) from cause


def _refused(net: Net, key: str, value: object) -> ConfigError:
    return _error(
        net,
        key,
        f"a plan cannot have this {key}",
        expected="a value within the limits of docs/spec/plan.md",
        got=str(value),
    )


def _error(net: Net, key: str, what: str, *, expected: str, got: str) -> ConfigError:
    return line_error(net.line_of(key), what, expected=expected, got=got)
