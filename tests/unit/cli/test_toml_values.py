from __future__ import annotations

import tomllib
from typing import cast

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.cli.toml_values import toml_table
from cloister.errors import ConfigError
from cloister.plan.values import Option

# Of any characters that are whole; halves of them are refused.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
OPTIONS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)


@given(st.dictionaries(TEXT, OPTIONS))
@example({"config": 'smile \U0001f600, \x7f, \0, \r\n, \\, "'})
@example({"": 1e300, "two words": -0.0})
def test_what_is_written_is_read_again(values: dict[str, Option]) -> None:
    text = toml_table(values)
    assert all(" " <= character <= "~" for character in text)
    # As text, because 1 is 1.0 is True.
    assert repr(tomllib.loads(f"it = {text}")["it"]) == repr(values)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (2**63, "a longer one"),
        (-(2**63) - 1, "a longer one"),
        ("half \ud83d", "half a character (a lone surrogate)"),
        (None, "NoneType"),
        ([1], "list"),
        (np.int64(1), "int64"),
    ],
)
def test_what_no_plan_can_hold_is_refused_by_its_name(value: object, got: str) -> None:
    option = cast("Option", value)
    for values in ({"depth": option}, {"first": 1, "depth": option}):
        with pytest.raises(ConfigError, match="'depth' cannot stand") as caught:
            toml_table(values)
        assert (caught.value.code, caught.value.got) == ("value-invalid", got)


def test_a_name_of_half_characters_is_refused_in_whole_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        toml_table({"\udc80": 1})
    assert str(caught.value).isascii()
