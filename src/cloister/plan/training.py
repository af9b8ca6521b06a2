"""``[training]``: everything that decides the bits of the result.

A round has one of two forms. In sync-sgd each worker sends the mean gradient of one
batch. In fedavg it takes local steps with an optimiser of its own and sends by how much
that moved its model (the pseudo-gradient of Reddi et al., 2021, "Adaptive federated
optimization"). The server's optimiser takes the mean of either for a gradient.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from cloister.errors import ConfigError
from cloister.plan.values import ClassName, Count, FileName, Fraction, Option, Rate

Epsilon = Annotated[float, Meta(ge=1e-30, le=1)]  # a normal number in float32 as well
WarmupRounds = Annotated[int, Meta(ge=0, le=2**31 - 1)]

# The most that a worker's header can say (`Examples` in `federation.messages`).
MAX_EXAMPLES = 2**40

Mode = Literal["sync-sgd", "fedavg"]
Wire = Literal["float32", "bfloat16"]


class _Optimizer(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="name",
):
    """What the server's optimisers share.

    Attributes:
        learning_rate: The highest rate in sync-sgd; in fedavg the rate of every round.
    """

    learning_rate: Rate


class SgdOptimizer(_Optimizer, frozen=True, kw_only=True, tag="sgd"):
    """SGD as `torch.optim.SGD` defines it."""

    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: Fraction = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ConfigError(
                "Nesterov's step would be ignored",
                code="optimizer-invalid",
                expected="momentum above 0 with nesterov = true",
                got=f"momentum = {self.momentum}",
                remedy="Give a momentum, or leave nesterov out.",
            )


class AdagradOptimizer(_Optimizer, frozen=True, kw_only=True, tag="adagrad"):
    """Adagrad as `torch.optim.Adagrad` defines it."""

    epsilon: Epsilon = 1e-10
    weight_decay: Fraction = 0.0


class AdamOptimizer(_Optimizer, frozen=True, kw_only=True, tag="adam"):
    """Adam with bias correction, as `torch.optim.Adam` defines it."""

    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Epsilon = 1e-8
    weight_decay: Fraction = 0.0


class YogiOptimizer(_Optimizer, frozen=True, kw_only=True, tag="yogi"):
    """Yogi (Zaheer et al., 2018)."""

    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Epsilon = 1e-3
    weight_decay: Fraction = 0.0


class CustomOptimizer(_Optimizer, frozen=True, kw_only=True, tag="custom"):
    """The plan's own strategy.

    Attributes:
        file: Beside the plan; every node measures it, and the server runs it.
        class_: The class in it.
        options: Its keyword arguments.
    """

    file: FileName
    class_: ClassName = msgspec.field(name="class")
    options: dict[str, Option] = {}


class Initial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``initial``: the model that training starts from, in place of the task's own.

    Attributes:
        file: Arrays in safetensors, beside the plan; as the task exports a model.
        sha256: Of that file, 64 hex digits.
    """

    file: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\.safetensors\Z")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


Optimizer: TypeAlias = (
    SgdOptimizer | AdagradOptimizer | AdamOptimizer | YogiOptimizer | CustomOptimizer
)


class LocalOptimizer(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``local_optimizer``: what takes a worker's local steps; it keeps no state.

    Attributes:
        name: SGD; or ``task``: the optimiser that the task itself makes.
        learning_rate: The highest rate; the schedule is this one's.
        momentum: Share of the last step that stays; each round begins at rest.
        weight_decay: Pull towards zero.
    """

    name: Literal["sgd", "task"] = "sgd"
    learning_rate: Rate
    momentum: Fraction = 0.0
    weight_decay: Fraction = 0.0

    def __post_init__(self) -> None:
        if self.name == "task" and (self.momentum or self.weight_decay):
            raise ConfigError(
                "settings of the task's own optimiser would be ignored",
                code="optimizer-invalid",
                expected="momentum and weight_decay only with name = 'sgd'",
                got=f"{self.momentum} and {self.weight_decay} with name = 'task'",
                remedy="Set them in the task, as its options.",
            )


class _Schedule(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="name",
):
    """What schedules share: they begin after a linear rise."""

    warmup_rounds: WarmupRounds = 0


class ConstantSchedule(_Schedule, frozen=True, kw_only=True, tag="constant"):
    """The rate stays."""


class StepSchedule(_Schedule, frozen=True, kw_only=True, tag="step"):
    """Every so many rounds the rate is multiplied by a factor."""

    every_rounds: Count
    factor: Annotated[float, Meta(gt=0, lt=1)] = 0.1


class CosineSchedule(_Schedule, frozen=True, kw_only=True, tag="cosine"):
    """The rate falls towards zero along half a cosine."""


class PolySchedule(_Schedule, frozen=True, kw_only=True, tag="poly"):
    """The rate falls as a power of the share of rounds that is left."""

    power: Annotated[float, Meta(gt=0, le=100)] = 1.0
    end_fraction: Fraction = 0.0  # of the highest rate


Schedule: TypeAlias = ConstantSchedule | StepSchedule | CosineSchedule | PolySchedule


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section.

    Attributes:
        mode: What a worker does in a round.
        rounds: Rounds of training.
        batch_size: Examples of a worker in one step.
        seed: First weights, examples of each step, and who is drawn.
        optimizer: The server's: what it makes of the mean update.
        schedule: Of the rate that descends on data: the server's in sync-sgd, the
            local one in fedavg.
        precision: Arithmetic of the forward and backward pass.
        threads: Of each worker.
        wire: How parameters and updates travel.
        local_steps: Steps of a worker in one round of fedavg.
        local_optimizer: What it takes them with.
        initial: Weights to start from; None: the task's, under the seed.
    """

    mode: Mode
    rounds: Count
    batch_size: Count
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    optimizer: Optimizer
    schedule: Schedule
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    wire: Wire = "float32"
    local_steps: Count | None = None
    local_optimizer: LocalOptimizer | None = None
    initial: Initial | None = None

    def __post_init__(self) -> None:
        self._check_local()
        self._check_examples()
        if self.schedule.warmup_rounds > self.rounds:
            raise ConfigError(
                "the warm-up is longer than the training",
                code="warmup-too-long",
                expected=f"at most {self.rounds} warm-up rounds",
                got=str(self.schedule.warmup_rounds),
            )

    @property
    def own_strategy(self) -> CustomOptimizer | None:
        """The plan's own strategy, in a file beside it; None where it names ours."""
        optimizer = self.optimizer
        return optimizer if isinstance(optimizer, CustomOptimizer) else None

    def _check_examples(self) -> None:
        """Refuses updates over more examples than can be said."""
        examples = self.batch_size * (self.local_steps or 1)
        if examples > MAX_EXAMPLES:
            raise ConfigError(
                "an update would be over too many examples",
                code="examples-too-many",
                expected=f"batch_size * local_steps of at most {MAX_EXAMPLES}",
                got=str(examples),
            )

    def _check_local(self) -> None:
        """Refuses local steps without what they need, and what would be ignored."""
        keys = {
            "local_steps": self.local_steps,
            "local_optimizer": self.local_optimizer,
        }
        wanted = self.mode == "fedavg"
        wrong = [key for key, value in keys.items() if (value is not None) != wanted]
        if not wrong:
            return
        raise ConfigError(
            "the plan does not say how workers take their local steps"
            if wanted
            else "settings of local steps would be ignored",
            code="local-missing" if wanted else "local-unused",
            expected=f"{' and '.join(keys)} with mode = 'fedavg', and with no other",
            got=f"{'no ' if wanted else ''}{', '.join(wrong)} with {self.mode!r}",
            remedy="docs/how-to/plan.md says what a round is in each mode.",
        )
