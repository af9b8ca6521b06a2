from __future__ import annotations

import numpy as np
import pytest

from cloister.federation.layout import layout_of
from cloister.federation.transfer_sizes import FEW, MANY, MOST_FEW, MOST_SOME, SOME
from cloister.federation.wire_format import (
    Bfloat16,
    Float32,
    Wire,
    wire_format,
)


@pytest.mark.parametrize(
    ("name", "kind", "chunks"), [("float32", Float32, 2), ("bfloat16", Bfloat16, 1)]
)
def test_a_plan_names_the_format(
    name: Wire, kind: type[Float32 | Bfloat16], chunks: int
) -> None:
    layout = layout_of({"w": np.zeros(FEW.chunk_bytes // 4 + 1)}, {})
    wire = wire_format(name, layout, workers=2)
    assert isinstance(wire, kind)
    assert (wire.name, wire.chunk_count) == (name, chunks)
    assert wire.values_per_chunk * wire.value_bytes == FEW.chunk_bytes
    assert wire.chunk_bytes == FEW.chunk_bytes
    assert wire.layout is layout


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_with_many_workers_chunks_are_smaller(name: Wire) -> None:
    layout = layout_of({"w": np.zeros(8)}, {})
    for workers, sizes in (
        (MOST_FEW, FEW),
        (MOST_FEW + 1, SOME),
        (MOST_SOME, SOME),
        (MOST_SOME + 1, MANY),
    ):
        wire = wire_format(name, layout, workers=workers)
        assert wire.chunk_bytes == sizes.chunk_bytes
