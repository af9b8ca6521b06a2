"""SGD with momentum and weight decay, as PyTorch's `torch.optim.SGD` defines it.

d = gradient + weight_decay * decay_mask * parameters
v = momentum * v + d
parameters = parameters - learning_rate * v
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """The optimiser's constants.

    Attributes:
        momentum: Share of the last velocity that stays.
        weight_decay: Pull towards zero where the mask is 1.
        decay_mask: 1 where weight decay applies, 0 elsewhere: (parameter_count,).
    """

    momentum: float
    weight_decay: float
    decay_mask: Vector

    def initial(self) -> Vector:
        """Returns the velocity before the first step."""
        return np.zeros_like(self.decay_mask)

    def update(
        self, parameters: Vector, velocity: Vector, *, gradient: Vector, rate: float
    ) -> tuple[Vector, Vector]:
        """Returns new parameters and velocity; its arguments stay as they are.

        Args:
            parameters: All parameters: (parameter_count,).
            velocity: What the last step returned.
            gradient: The mean gradient.
            rate: The learning rate of this round.
        """
        step = gradient + np.float32(self.weight_decay) * self.decay_mask * parameters
        new_velocity = np.float32(self.momentum) * velocity + step
        return parameters - np.float32(rate) * new_velocity, new_velocity
