"""The weighted mean of updates (McMahan et al., 2017, algorithm 1's server step)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", np.float32, np.float64)


def weighted_mean(
    updates: Sequence[NDArray[Float]], weights: Sequence[int]
) -> NDArray[Float]:
    """Returns sum(weight * update) / sum(weight), added in the order given.

    Args:
        updates: At least one array, all of one shape.
        weights: One positive weight for each, such as its number of examples.
    """
    total = sum(weights)
    dtype = updates[0].dtype.type
    mean = updates[0] * dtype(weights[0] / total)
    for update, weight in zip(updates[1:], weights[1:], strict=True):
        mean += update * dtype(weight / total)
    return mean
