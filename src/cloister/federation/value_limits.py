"""How large an update's values may be; NaN and infinity are beyond every limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ProtocolError

Values = TypeVar("Values", bound=NDArray[np.float32] | NDArray[np.float64])


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLimits:
    """The largest magnitudes that are accepted.

    Attributes:
        parameter: Of a parameter.
        statistic: Of a statistic.
    """

    parameter: float
    statistic: float

    def within(self, others: ValueLimits) -> bool:
        """Returns whether whatever keeps these limits keeps `others` too."""
        return self.parameter <= others.parameter and self.statistic <= others.statistic


FINITE: Final = ValueLimits(
    parameter=float(np.finfo(np.float32).max),
    statistic=float(np.finfo(np.float64).max),
)


def check_values(values: Values, *, limit: float) -> Values:
    """Returns `values` if none is larger than `limit`, NaN or infinite.

    Least and greatest are found at the speed of reading, without a temporary array.
    NaN is passed on by both, and compares as false.

    Raises:
        ProtocolError: If one is; which, and how large, is not told.
    """
    if values.size and not (values.max() <= limit and values.min() >= -limit):
        raise refuse_values(finite=bool(np.isfinite(values).all()), limit=limit)
    return values


def refuse_values(*, finite: bool, limit: float) -> ProtocolError:
    """Returns the refusal of an update with a value beyond its limit.

    Args:
        finite: Whether all its values are finite, and so one is too large.
        limit: The limit.
    """
    if not finite:
        return ProtocolError(
            "an update does not count",
            code="update-not-finite",
            expected="finite values",
            got="NaN or infinity",
        )
    return ProtocolError(
        "an update does not count",
        code="update-too-large",
        expected=f"values of at most {limit:g}",
        got="a larger one",
        remedy="Lower the learning rate, or scale the task's loss or statistics.",
    )
