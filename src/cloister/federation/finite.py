"""Looks for NaN and infinity at the speed of reading."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError

Float = TypeVar("Float", np.float32, np.float64)


def check_finite(values: NDArray[Float], *, round_number: int) -> NDArray[Float]:
    """Returns what a round's step made, if all of it is finite.

    One NaN or infinity makes the sum one. A sum of large values may overflow as well,
    so only then each is looked at. Runs under `np.errstate(over=..., invalid=...)`.

    Raises:
        ConfigError: If it is not: training diverged.
    """
    if (
        not np.isfinite(np.add.reduce(values, axis=None))
        and not np.isfinite(values).all()
    ):
        raise ConfigError(
            f"training diverged in round {round_number}",
            code="training-diverged",
            expected="finite values in model and optimiser",
            got="NaN or infinity",
            remedy="Lower the plan's learning rate, or warm up longer.",
        )
    return values
