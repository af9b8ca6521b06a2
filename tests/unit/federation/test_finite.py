from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.federation.finite import check_finite


@given(st.lists(st.floats(width=32), max_size=20))
def test_values_pass_exactly_if_all_are_finite(values: list[float]) -> None:
    array = np.array(values, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array).all():
            assert check_finite(array, round_number=1) is array
        else:
            with pytest.raises(ConfigError) as caught:
                check_finite(array, round_number=1)
            assert caught.value.code == "training-diverged"


def test_a_sum_that_overflows_is_no_fault_of_the_values() -> None:
    array = np.full(100, 3e38, np.float32)
    with np.errstate(over="ignore"):
        assert check_finite(array, round_number=1) is array


def test_the_error_names_the_round_and_no_value() -> None:
    with pytest.raises(ConfigError, match="in round 7") as caught:
        check_finite(np.array([1.25, np.inf], np.float32), round_number=7)
    assert "1.25" not in str(caught.value)
