from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.federation.transfer import CHUNK_BYTES, Receiver, chunks_of

LAYOUT = layout_of({"w": np.zeros(7)}, {"mean": np.zeros(2)})


def filled() -> ModelBuffer:
    buffer = ModelBuffer(LAYOUT)
    buffer.data[:] = np.arange(LAYOUT.size_bytes, dtype=np.uint8)
    return buffer


@given(st.lists(st.integers(1, LAYOUT.size_bytes), max_size=LAYOUT.size_bytes))
def test_a_buffer_arrives_as_it_left_however_it_is_cut(cuts: list[int]) -> None:
    content = filled().data.tobytes()
    target = ModelBuffer(LAYOUT)
    receiver = Receiver(target)
    places = sorted({0, *(cut for cut in cuts if cut < len(content)), len(content)})
    for start, stop in itertools.pairwise(places):
        assert not receiver.whole
        receiver.feed(content[start:stop])
    receiver.finish()
    assert target.data.tobytes() == content


def test_chunks_are_of_one_size_but_the_last() -> None:
    layout = layout_of({"w": np.zeros(CHUNK_BYTES // 4 * 2 + 1)}, {})
    buffer = ModelBuffer(layout)
    sizes = [len(chunk) for chunk in chunks_of(buffer)]
    assert sizes == [CHUNK_BYTES, CHUNK_BYTES, 8]


def test_an_empty_layout_has_no_chunks() -> None:
    buffer = ModelBuffer(layout_of({}, {}))
    assert list(chunks_of(buffer)) == []
    Receiver(buffer).finish()


@pytest.mark.parametrize("missing", [1, 8, LAYOUT.size_bytes])
def test_a_transfer_that_ends_early_is_refused(missing: int) -> None:
    receiver = Receiver(ModelBuffer(LAYOUT))
    content = filled().data.tobytes()[: LAYOUT.size_bytes - missing]
    if content:
        receiver.feed(content)
    with pytest.raises(ProtocolError) as caught:
        receiver.finish()
    assert caught.value.code == "transfer-short"
    assert caught.value.got == str(len(content))


@pytest.mark.parametrize("extra", [1, 4 * 1024 * 1024])
def test_a_chunk_too_long_is_refused(extra: int) -> None:
    receiver = Receiver(ModelBuffer(LAYOUT))
    with pytest.raises(ProtocolError) as caught:
        receiver.feed(bytes(LAYOUT.size_bytes + extra))
    assert caught.value.code == "chunk-size"


def test_a_chunk_after_the_end_is_refused() -> None:
    target = ModelBuffer(LAYOUT)
    receiver = Receiver(target)
    receiver.feed(filled().data.tobytes())
    with pytest.raises(ProtocolError) as caught:
        receiver.feed(b"\xff")
    assert caught.value.code == "chunk-size"
    assert target.data.tobytes() == filled().data.tobytes()


def test_an_empty_chunk_is_refused() -> None:
    with pytest.raises(ProtocolError):
        Receiver(ModelBuffer(LAYOUT)).feed(b"")
