from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cloister.errors import ProtocolError
from cloister.federation.value_limits import FINITE, ValueLimits, check_values

Values = NDArray[np.float32] | NDArray[np.float64]

SINGLES = np.linspace(-2, 2, 1000, dtype=np.float32)
DOUBLES = np.linspace(-2, 2, 1000)
SMALL = ValueLimits(parameter=2.0, statistic=8.0)


@pytest.mark.parametrize("values", [SINGLES, DOUBLES])
def test_values_up_to_the_limit_come_back_as_they_are(
    values: Values,
) -> None:
    assert check_values(values, limit=2.0) is values
    assert check_values(values[:0], limit=0.0).size == 0


@pytest.mark.parametrize("values", [SINGLES, DOUBLES])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_nan_and_infinity_are_refused_wherever_they_are(
    values: Values, value: float, place: int
) -> None:
    spoilt = values.copy()
    spoilt[place] = value
    with pytest.raises(ProtocolError) as caught:
        check_values(spoilt, limit=float(np.finfo(values.dtype).max))
    assert caught.value.code == "update-not-finite"


@pytest.mark.parametrize("pattern", [0x7F80_0001, 0xFF80_0001, 0x7FC0_0000])
def test_any_kind_of_nan_is_refused(pattern: int) -> None:
    values = np.zeros(1000, np.uint32)
    values[3] = pattern
    with pytest.raises(ProtocolError):
        check_values(values.view(np.float32), limit=FINITE.parameter)


@pytest.mark.parametrize("value", [np.nextafter(2.0, 3.0), -1e30])
def test_a_larger_value_is_refused_and_not_told(value: float) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_values(np.array([1.25, value]), limit=2.0)
    assert caught.value.code == "update-too-large"
    assert "e+30" not in str(caught.value)
    assert "1.25" not in str(caught.value)


def test_the_largest_finite_values_are_finite() -> None:
    largest = np.finfo(np.float32).max
    check_values(np.array([largest, -largest], np.float32), limit=FINITE.parameter)
    greatest = np.finfo(np.float64).max
    check_values(np.array([greatest, -greatest]), limit=FINITE.statistic)


def test_smaller_limits_are_within_larger_ones() -> None:
    assert SMALL.within(FINITE)
    assert SMALL.within(SMALL)
    assert not FINITE.within(SMALL)
    assert not ValueLimits(parameter=1.0, statistic=9.0).within(SMALL)
