from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloister.federation.blocks import BLOCK, blocks_of

POSITIONS = st.integers(0, 3_000_000)


@given(
    one=POSITIONS, other=POSITIONS, within=st.sampled_from([2**15, 3 * 2**14, 2**20])
)
def test_blocks_cover_a_stretch_once_and_cross_no_chunk(
    one: int, other: int, within: int
) -> None:
    start, stop = sorted((one, other))
    at = start
    for block in blocks_of(start, stop, within=within):
        assert block.start == at < block.stop <= at + BLOCK
        assert block.start // within == (block.stop - 1) // within
        at = block.stop
    assert at == stop


def test_blocks_begin_at_multiples_of_their_size() -> None:
    blocks = list(blocks_of(10, 2 * BLOCK + 1))
    assert [(b.start, b.stop) for b in blocks] == [
        (10, BLOCK),
        (BLOCK, 2 * BLOCK),
        (2 * BLOCK, 2 * BLOCK + 1),
    ]
