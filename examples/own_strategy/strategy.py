"""LAMB (You et al., 2020): Adam whose step has, in each array, the size of the weights.

    m = beta1 * m + (1 - beta1) * mean
    v = beta2 * v + (1 - beta2) * mean^2
    step = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + weight_decay * w
    w = w - rate * |w| / |step| * step          (a ratio of 1 where either norm is 0)

The norms of whole arrays make it a strategy: no built-in optimiser looks at more than
one value at a time. Usable as a plan's own strategy:

    optimizer = { name = "custom", learning_rate = 0.01, file = "strategy.py",
                  class = "Lamb", options = { weight_decay = 1e-4 } }
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Arrays = Mapping[str, Array]
State = Mapping[str, Arrays]


class Lamb:
    """The strategy.

    Args:
        beta1: Share of the mean that stays.
        beta2: Share of the mean square that stays.
        epsilon: Added to the root, so that nothing is divided by zero.
        weight_decay: Pull towards zero, on arrays of two axes or more.
    """

    def __init__(
        self,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.weight_decay = weight_decay

    def initial(self, parameters: Arrays) -> State:
        return {
            slot: {name: np.zeros_like(array) for name, array in parameters.items()}
            for slot in ("m", "v")
        }

    def step(
        self,
        parameters: Arrays,
        state: State,
        *,
        mean: Arrays,
        rate: float,
        round_number: int,
    ) -> tuple[Arrays, State]:
        moved, m, v = {}, {}, {}
        for name, weights in parameters.items():
            m[name] = _mixed(state["m"][name], mean[name], self.beta1)
            v[name] = _mixed(state["v"][name], np.square(mean[name]), self.beta2)
            root = np.sqrt(v[name] / np.float32(1 - self.beta2**round_number))
            step = m[name] / np.float32(1 - self.beta1**round_number)
            step /= root + np.float32(self.epsilon)
            if weights.ndim > 1:
                step += np.float32(self.weight_decay) * weights
            moved[name] = weights - np.float32(rate * _trust(weights, step)) * step
        return moved, {"m": m, "v": v}


def _mixed(old: Array, new: Array, share: float) -> Array:
    return np.float32(share) * old + np.float32(1 - share) * new


def _trust(weights: Array, step: Array) -> float:
    """Returns the ratio of two norms; 1 where there is nothing to compare."""
    # In float64, so that the sum of many squares keeps its digits.
    of_weights = float(np.sqrt(np.sum(np.square(weights, dtype=np.float64))))
    of_step = float(np.sqrt(np.sum(np.square(step, dtype=np.float64))))
    return of_weights / of_step if of_weights and of_step else 1.0
