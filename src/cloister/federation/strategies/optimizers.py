"""The built-in optimisers: one step of each, value by value.

Each is a function of one stretch of the model; its arguments stay as they are, and its
results go where the caller says. A value's result depends on that value alone, and only
operations that IEEE 754 rounds correctly are used (no powers, no fused multiply-add),
so any split into blocks gives the same bits. The engine needs no second model for a
step, may share the blocks among threads, and allocates nothing for them: fresh arrays
of this size cost more in page faults than the arithmetic does.

Weight decay is added to the gradient (L2), as `torch.optim` does outside AdamW.

What needs more than one value at a time, such as the norm of an array, is a `Strategy`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Where a step writes; overlaps nothing that it reads.

    Attributes:
        parameters: Receives the new parameters: (values,).
        state: Receives the new state, in the order of the slots: (values,) each.
        spare: The step's own, with any content before and after: (values,).
    """

    parameters: Vector
    state: tuple[Vector, ...]
    spare: Vector

    @classmethod
    def of(cls, optimizer: Elementwise, values: int) -> Workspace:
        """Returns a workspace for so many values of an optimiser's step."""
        return cls(
            parameters=np.empty(values, np.float32),
            state=tuple(np.empty(values, np.float32) for _ in optimizer.slots),
            spare=np.empty(values, np.float32),
        )

    def first(self, values: int) -> Workspace:
        """Returns the first so many values of it."""
        return Workspace(
            parameters=self.parameters[:values],
            state=tuple(vector[:values] for vector in self.state),
            spare=self.spare[:values],
        )


class Elementwise(Protocol):
    """An optimiser that treats every parameter alike and apart from all others."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of its state vectors, each as long as the parameters."""
        ...

    @property
    def weight_decay(self) -> float:
        """Pull towards zero, for parameters to which weight decay applies."""
        ...

    def initial(self, slot: str) -> float:
        """Returns the value that fills a state vector before the first round."""
        ...

    def step(  # noqa: PLR0913 - all that makes one step
        self,
        parameters: Vector,
        state: tuple[Vector, ...],
        *,
        gradient: Vector,
        decay: Vector | None,
        rate: float,
        round_number: int,
        into: Workspace,
    ) -> None:
        """Computes new parameters and state; all but `into` stays as it is.

        Args:
            parameters: A block of the parameters: (values,).
            state: The same block of every state vector, in the order of `slots`.
            gradient: The mean gradient, or in `fedavg` the mean pseudo-gradient.
            decay: `weight_decay` where it applies and 0 elsewhere: (values,); None if
                it applies nowhere in the model.
            rate: The learning rate of this round.
            round_number: Counts from 1.
            into: Receives the results.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd(Elementwise):
    """SGD, as `torch.optim.SGD` defines it.

    d = gradient + decay * parameters
    v = momentum * v + d
    parameters = parameters - rate * v, or with `nesterov` rate * (d + momentum * v)

    Attributes:
        momentum: Share of the last velocity that stays; 0 keeps no velocity.
        nesterov: Whether the step looks ahead along the velocity.
        weight_decay: Pull towards zero.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    @property
    @override
    def slots(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    @override
    def initial(self, slot: str) -> float:
        return 0.0

    @override
    def step(
        self,
        parameters: Vector,
        state: tuple[Vector, ...],
        *,
        gradient: Vector,
        decay: Vector | None,
        rate: float,
        round_number: int,
        into: Workspace,
    ) -> None:
        slope = _with_decay(gradient, parameters, decay, into.spare)
        move, factor = into.parameters, np.float32(rate)
        if not self.momentum:
            np.multiply(slope, factor, out=move)
        else:
            (velocity,) = into.state
            np.multiply(state[0], np.float32(self.momentum), out=velocity)
            velocity += slope
            if self.nesterov:
                np.multiply(velocity, np.float32(self.momentum), out=move)
                move += slope
                move *= factor
            else:
                np.multiply(velocity, factor, out=move)
        np.subtract(parameters, move, out=move)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adagrad(Elementwise):
    """Adagrad (Duchi et al., 2011), as `torch.optim.Adagrad` defines it.

    s = s + d * d
    parameters = parameters - rate * d / (sqrt(s) + epsilon)

    Attributes:
        epsilon: Added to the root, so that nothing is divided by zero.
        weight_decay: Pull towards zero.
    """

    epsilon: float = 1e-10
    weight_decay: float = 0.0

    @property
    @override
    def slots(self) -> tuple[str, ...]:
        return ("sum_of_squares",)

    @override
    def initial(self, slot: str) -> float:
        return 0.0

    @override
    def step(
        self,
        parameters: Vector,
        state: tuple[Vector, ...],
        *,
        gradient: Vector,
        decay: Vector | None,
        rate: float,
        round_number: int,
        into: Workspace,
    ) -> None:
        slope = _with_decay(gradient, parameters, decay, into.spare)
        (squares,) = into.state
        np.multiply(slope, slope, out=squares)
        squares += state[0]
        move = np.sqrt(squares, out=into.parameters)
        move += np.float32(self.epsilon)
        np.divide(slope, move, out=move)
        move *= np.float32(rate)
        np.subtract(parameters, move, out=move)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(Elementwise):
    """Adam (Kingma and Ba, 2015), bias-corrected, as `torch.optim.Adam` defines it.

    m = beta1 * m + (1 - beta1) * d
    v = beta2 * v + (1 - beta2) * d * d
    parameters = parameters
        - rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)

    with t the number of the round. (FedAdam of Reddi et al., 2021, has no correction.)

    Attributes:
        beta1: Share of the mean that stays.
        beta2: Share of the mean square that stays.
        epsilon: Added to the root, so that nothing is divided by zero.
        weight_decay: Pull towards zero.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    @property
    @override
    def slots(self) -> tuple[str, ...]:
        return ("mean", "mean_square")

    @override
    def initial(self, slot: str) -> float:
        return 0.0

    @override
    def step(
        self,
        parameters: Vector,
        state: tuple[Vector, ...],
        *,
        gradient: Vector,
        decay: Vector | None,
        rate: float,
        round_number: int,
        into: Workspace,
    ) -> None:
        slope = _with_decay(gradient, parameters, decay, into.spare)
        mean, square = into.state
        move = into.parameters
        _mix(state[0], slope, share=self.beta1, out=mean)
        np.multiply(slope, slope, out=square)
        square *= np.float32(1.0 - self.beta2)
        np.multiply(state[1], np.float32(self.beta2), out=move)
        square += move
        np.sqrt(square, out=move)
        move /= np.float32(math.sqrt(1.0 - self.beta2**round_number))
        move += np.float32(self.epsilon)
        np.divide(mean, move, out=move)
        move *= np.float32(rate / (1.0 - self.beta1**round_number))
        np.subtract(parameters, move, out=move)


@dataclass(frozen=True, slots=True, kw_only=True)
class Yogi(Elementwise):
    """Yogi (Zaheer et al., 2018, algorithm 2), without bias correction.

    m = beta1 * m + (1 - beta1) * d
    v = v - (1 - beta2) * sign(v - d * d) * d * d
    parameters = parameters - rate * m / (sqrt(v) + epsilon)

    v begins at epsilon^2, as in FedYogi (Reddi et al., 2021, algorithm 2).

    Attributes:
        beta1: Share of the mean that stays.
        beta2: 1 - beta2 is how far v goes towards the square in one round.
        epsilon: Added to the root; the larger, the less the rates differ.
        weight_decay: Pull towards zero.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-3
    weight_decay: float = 0.0

    @property
    @override
    def slots(self) -> tuple[str, ...]:
        return ("mean", "spread")

    @override
    def initial(self, slot: str) -> float:
        return self.epsilon**2 if slot == "spread" else 0.0

    @override
    def step(
        self,
        parameters: Vector,
        state: tuple[Vector, ...],
        *,
        gradient: Vector,
        decay: Vector | None,
        rate: float,
        round_number: int,
        into: Workspace,
    ) -> None:
        slope = _with_decay(gradient, parameters, decay, into.spare)
        mean, spread = into.state
        move = into.parameters
        _mix(state[0], slope, share=self.beta1, out=mean)
        np.multiply(slope, slope, out=spread)
        np.subtract(state[1], spread, out=move)
        np.sign(move, out=move)
        spread *= move
        spread *= np.float32(1.0 - self.beta2)
        np.subtract(state[1], spread, out=spread)
        np.sqrt(spread, out=move)
        move += np.float32(self.epsilon)
        np.divide(mean, move, out=move)
        move *= np.float32(rate)
        np.subtract(parameters, move, out=move)


def _with_decay(
    gradient: Vector, parameters: Vector, decay: Vector | None, spare: Vector
) -> Vector:
    """Returns the gradient with weight decay; the very argument where there is none."""
    if decay is None:
        return gradient
    np.multiply(parameters, decay, out=spare)
    spare += gradient
    return spare


def _mix(old: Vector, new: Vector, *, share: float, out: Vector) -> None:
    """Puts share * old + (1 - share) * new into `out`, as PyTorch's `lerp` does."""
    np.subtract(new, old, out=out)
    out *= np.float32(1.0 - share)
    out += old
