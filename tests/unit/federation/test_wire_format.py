from __future__ import annotations

import numpy as np
import pytest

from cloister.federation.layout import layout_of
from cloister.federation.wire_format import (
    CHUNK_BYTES,
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
    layout = layout_of({"w": np.zeros(CHUNK_BYTES // 4 + 1)}, {})
    wire = wire_format(name, layout)
    assert isinstance(wire, kind)
    assert (wire.name, wire.chunk_count) == (name, chunks)
    assert wire.values_per_chunk * wire.value_bytes == CHUNK_BYTES
    assert wire.layout is layout
