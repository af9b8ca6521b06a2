from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloister.federation.layout import ArraySpec, Layout
from cloister.federation.strategies.weight_decay import WeightDecay


def layout(*arrays: tuple[int, bool]) -> Layout:
    return Layout(
        tuple(
            ArraySpec(name=f"a{i}", shape=(count,), kind="parameter", decay=decay)
            for i, (count, decay) in enumerate(arrays)
        )
    )


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=8),
    st.integers(1, 12),
)
def test_the_blocks_together_are_the_mask_times_the_decay(
    arrays: list[tuple[int, bool]], block: int
) -> None:
    made = layout(*arrays)
    decay = WeightDecay(made, 0.25, block=block)
    whole = made.decay_mask() * np.float32(0.25)
    for start in range(0, made.parameter_count, block):
        stop = min(start + block, made.parameter_count)
        found = decay.block(start, stop)
        if found is None:
            assert not whole.any()
        else:
            np.testing.assert_array_equal(found, whole[start:stop])


def test_none_says_that_nothing_in_the_model_decays() -> None:
    assert WeightDecay(layout((4, True)), 0.0, block=4).block(0, 4) is None
    assert WeightDecay(layout((4, False)), 0.1, block=4).block(0, 4) is None
    apart = WeightDecay(layout((4, False), (4, True)), 0.1, block=4)
    exempt = apart.block(0, 4)
    assert exempt is not None
    np.testing.assert_array_equal(exempt, np.zeros(4))


def test_what_it_gives_cannot_change_what_it_gives_next() -> None:
    found = WeightDecay(layout((8, True)), 0.1, block=4).block(0, 4)
    assert found is not None
    assert not found.flags.writeable
