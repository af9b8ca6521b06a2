from __future__ import annotations

import hashlib
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cloister.federation.state import MARK_SECONDS, MarkTimer, state_digest

FLOATS = arrays.arrays(np.float32, st.integers(0, 6))
DOUBLES = arrays.arrays(np.float64, st.integers(0, 6))
STATES = st.fixed_dictionaries(
    {
        "run_id": st.sampled_from(["blobs/a", "blobs/b"]),
        "round_number": st.integers(0, 3),
        "layout_digest": st.sampled_from([64 * "0", 64 * "1"]),
        "parameters": FLOATS,
        "statistics": DOUBLES,
        "velocity": FLOATS,
    }
)
ONE: dict[str, Any] = {
    "run_id": "blobs/a",
    "round_number": 3,
    "layout_digest": 64 * "0",
    "parameters": np.arange(4, dtype=np.float32),
    "statistics": np.arange(2, dtype=np.float64),
    "velocity": np.arange(4, dtype=np.float32),
}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Returns whether two states are the same to the bit."""
    return all(
        np.asarray(one[key]).tobytes() == np.asarray(other[key]).tobytes()
        and np.shape(one[key]) == np.shape(other[key])
        for key in one
    )


@given(STATES, STATES)
def test_two_states_have_one_digest_exactly_when_they_are_the_same(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    equal = state_digest(**one) == state_digest(**other)
    assert equal == same(one, other)


@given(st.data())
def test_any_flipped_bit_changes_the_digest(data: st.DataObject) -> None:
    state = ONE | {
        name: ONE[name].copy() for name in ("parameters", "statistics", "velocity")
    }
    before = state_digest(**state)
    name = data.draw(st.sampled_from(["parameters", "statistics", "velocity"]))
    raw = state[name].view(np.uint8)
    raw[data.draw(st.integers(0, raw.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert state_digest(**state) != before


def test_no_byte_passes_from_one_array_to_the_next() -> None:
    long, short = np.zeros(4, np.float32), np.zeros(2, np.float32)
    one = {**ONE, "parameters": long, "velocity": short}
    other = {**ONE, "parameters": short, "velocity": long}
    assert state_digest(**one) != state_digest(**other)


def test_the_digest_is_what_the_specification_says() -> None:
    header = ["cloister/state/1", "blobs/a", 3, 64 * "0", [16, 16, 16]]
    raw = cbor2.dumps(header, canonical=True)
    for name, dtype in (
        ("parameters", "<f4"),
        ("statistics", "<f8"),
        ("velocity", "<f4"),
    ):
        raw += np.asarray(ONE[name]).astype(dtype).tobytes()
    assert state_digest(**ONE) == hashlib.sha256(raw).digest()


class Seconds:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


def test_the_first_model_of_a_server_carries_a_mark(seconds: Seconds) -> None:
    assert MarkTimer(seconds).take(final=False)


def test_a_mark_is_due_again_after_five_seconds_and_not_before(
    seconds: Seconds,
) -> None:
    timer = MarkTimer(seconds)
    assert timer.take(final=False)
    assert not timer.take(final=False)
    seconds.now += MARK_SECONDS - 0.1
    assert not timer.take(final=False)
    seconds.now += 0.1
    assert timer.take(final=False)
    assert not timer.take(final=False)


def test_the_final_model_always_carries_a_mark(seconds: Seconds) -> None:
    timer = MarkTimer(seconds)
    assert timer.take(final=False)
    assert timer.take(final=True)
