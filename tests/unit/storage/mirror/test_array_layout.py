from __future__ import annotations

import hashlib

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.storage.mirror.array_layout import ALIGNMENT_BYTES, ArrayLayout, spec_of
from cloister.storage.mirror.subject import ArraySpec

SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
TYPES = st.sampled_from(["|u1", "<f4", "<f8", "<i8", "|b1", "<f2", "<c16", ">i4"])
LAYOUTS = st.lists(st.tuples(SHAPES, TYPES), min_size=1, max_size=6).map(
    lambda forms: [
        ArraySpec(name=f"a{n}", shape=shape, dtype=dtype)
        for n, (shape, dtype) in enumerate(forms)
    ]
)
SPEC = ArraySpec(name="a", shape=(3,), dtype="<f4")


@given(LAYOUTS, st.integers(1, 300))
def test_blocks_cover_every_byte_once_and_none_belongs_to_two_arrays(
    specs: list[ArraySpec], block_bytes: int
) -> None:
    if not any(spec.size_bytes for spec in specs):
        return
    layout = ArrayLayout(specs, block_bytes=block_bytes)
    assert [block.number for block in layout.blocks] == list(range(len(layout.blocks)))
    end = 0
    covered = [0] * len(specs)
    for block in layout.blocks:
        assert 1 <= block.size_bytes <= block_bytes
        assert block.start == covered[block.array]
        assert (block.offset - block.start) % ALIGNMENT_BYTES == 0
        assert block.offset >= end
        end = block.offset + block.size_bytes
        covered[block.array] += block.size_bytes
    assert covered == [spec.size_bytes for spec in specs]
    assert end <= layout.size_bytes


@given(LAYOUTS, st.integers(1, 90), st.data())
def test_the_blocks_of_a_range_are_those_that_have_bytes_of_it(
    specs: list[ArraySpec], block_bytes: int, data: st.DataObject
) -> None:
    if not any(spec.size_bytes for spec in specs):
        return
    layout = ArrayLayout(specs, block_bytes=block_bytes)
    array = data.draw(st.integers(0, len(specs) - 1))
    start = data.draw(st.integers(0, specs[array].size_bytes))
    end = data.draw(st.integers(start, specs[array].size_bytes))
    assert list(layout.blocks_between(array, start, end)) == [
        block
        for block in layout.blocks
        if block.array == array
        and max(start, block.start) < min(end, block.start + block.size_bytes)
    ]


def test_the_digest_is_as_the_specification_says() -> None:
    specs = [SPEC, ArraySpec(name="b", shape=(2, 0), dtype="|u1")]
    form = [
        "cloister/mirror/1 layout",
        [["a", [3], "<f4"], ["b", [2, 0], "|u1"]],
        4096,
    ]
    expected = hashlib.sha256(cbor2.dumps(form, canonical=True)).digest()
    assert ArrayLayout(specs, block_bytes=4096).digest == expected


def test_views_are_of_the_arrays_themselves() -> None:
    arrays = {"a": np.zeros((2, 3), "<f4"), "scalar": np.array(5, "<i8")}
    specs = [spec_of(name, array) for name, array in arrays.items()]
    views = ArrayLayout(specs, block_bytes=16).bytes_of(arrays)
    assert [view.nbytes for view in views] == [24, 8]
    for view in views:
        view[:] = 255
    assert np.isnan(arrays["a"]).all()
    assert arrays["scalar"] == -1


@pytest.mark.parametrize(
    "specs",
    [
        [],
        [SPEC, SPEC],
        [ArraySpec(name="", shape=(3,), dtype="<f4")],
        [ArraySpec(name="a b", shape=(3,), dtype="<f4")],
        [ArraySpec(name="a\x1b[31m", shape=(3,), dtype="<f4")],
        [ArraySpec(name="a" * 256, shape=(3,), dtype="<f4")],
        [ArraySpec(name="a", shape=(3,), dtype="float32")],
        [ArraySpec(name="a", shape=(3,), dtype="f4")],
        [ArraySpec(name="a", shape=(3,), dtype="|O")],
        [ArraySpec(name="a", shape=(3,), dtype="<U4")],
        [ArraySpec(name="a", shape=(3,), dtype="<M8[s]")],
        [ArraySpec(name="a", shape=(3,), dtype="no type")],
        [ArraySpec(name="a", shape=(3, -1), dtype="<f4")],
        [ArraySpec(name="a", shape=(1,) * 33, dtype="<f4")],
        [ArraySpec(name="a", shape=(0,), dtype="<f4")],
        [ArraySpec(name="a", shape=(2**60,), dtype="<f4")],
    ],
)
def test_arrays_that_cannot_be_mirrored_are_refused(specs: list[ArraySpec]) -> None:
    with pytest.raises(ConfigError) as caught:
        ArrayLayout(specs, block_bytes=2**20)
    assert caught.value.code == "mirror-arrays"
    assert str(caught.value).isprintable()


def test_too_many_blocks_are_refused_before_they_are_made() -> None:
    with pytest.raises(ConfigError):
        ArrayLayout([ArraySpec(name="a", shape=(2**40,), dtype="|u1")], block_bytes=1)
