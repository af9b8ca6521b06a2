from __future__ import annotations

import math

import pytest

from cloister.custody.service import CUSTODY_LIMITS
from cloister.ratls.limits import USUAL_LIMITS, Limits


def test_the_usual_limits_are_those_of_the_handshakes_page() -> None:
    for limits in (USUAL_LIMITS, CUSTODY_LIMITS):
        assert limits.stranger_seconds == 10
        assert limits.handshake_seconds == 30
    assert USUAL_LIMITS.at_once == 2048
    assert USUAL_LIMITS.enrolments_a_minute == 30


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
@pytest.mark.parametrize(
    "name",
    ["stranger_seconds", "handshake_seconds", "at_once", "enrolments_a_minute"],
)
def test_a_limit_that_limits_nothing_or_everything_is_a_bug(
    name: str, value: float
) -> None:
    with pytest.raises(ValueError, match="limit"):
        Limits(**{name: value})  # type: ignore[arg-type] # inf is no count either
