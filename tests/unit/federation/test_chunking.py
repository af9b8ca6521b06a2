from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.federation.chunking import Chunking
from cloister.federation.layout import layout_of

COUNTS = st.integers(0, 60)


def chunking(
    parameters: int, statistics: int, *, value_bytes: int, chunk_bytes: int
) -> Chunking:
    layout = layout_of({"w": np.zeros(parameters)}, {"m": np.zeros(statistics)})
    return Chunking(layout, value_bytes=value_bytes, chunk_bytes=chunk_bytes)


@given(COUNTS, COUNTS, st.sampled_from([1, 2, 4, 8]), st.sampled_from([8, 24, 64]))
def test_every_value_lies_in_one_chunk_and_in_order(
    parameters: int, statistics: int, value_bytes: int, chunk_bytes: int
) -> None:
    chunks = chunking(
        parameters, statistics, value_bytes=value_bytes, chunk_bytes=chunk_bytes
    )
    numbers = range(chunks.chunk_count)
    for count, held in (
        (parameters, [chunks.parameters(n) for n in numbers]),
        (statistics, [chunks.statistics(n) for n in numbers]),
    ):
        assert [i for s in held for i in range(s.start, s.stop)] == [*range(count)]
    padding = sum(chunks.padding(n) for n in numbers)
    assert padding == -parameters * value_bytes % 8
    size = parameters * value_bytes + padding + statistics * 8
    assert chunks.size_bytes == size


@pytest.mark.parametrize("chunk_bytes", [0, -8, 12])
def test_a_chunk_that_cuts_through_a_value_is_not_made(chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match="eight"):
        chunking(1, 1, value_bytes=4, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("number", [2, 3, 1000])
def test_there_is_nothing_after_the_last_chunk(number: int) -> None:
    chunks = chunking(4, 0, value_bytes=4, chunk_bytes=8)
    with pytest.raises(ProtocolError) as caught:
        chunks.check(number, bytes(8))
    assert caught.value.expected == "no more chunks"
