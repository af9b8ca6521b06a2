from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.federation.updates import ModelReceiver, Receiver, Update
from cloister.federation.value_limits import FINITE, ValueLimits
from cloister.federation.wire_format import Bfloat16, Float32

LAYOUT = layout_of({"w": np.zeros(11)}, {"m": np.zeros(3)})
FORMATS = (Float32(LAYOUT, chunk_bytes=16), Bfloat16(LAYOUT, chunk_bytes=16))
Format = Float32 | Bfloat16


def filled() -> ModelBuffer:
    model = ModelBuffer(LAYOUT)
    model.parameters[...] = np.arange(11) + 1
    model.statistics[...] = (0.1, 0.2, 0.3)
    return model


def chunks_of(wire: Format) -> list[bytes]:
    return [wire.encode(filled(), number) for number in range(wire.chunk_count)]


def feed(receiver: Receiver | ModelReceiver, chunks: list[bytes]) -> None:
    for chunk in chunks:
        receiver.feed(chunk)


def received(wire: Format, chunks: list[bytes] | None = None) -> Update:
    receiver = Receiver(wire)
    feed(receiver, chunks_of(wire) if chunks is None else chunks)
    return receiver.finish()


def holders(chunks: list[bytes]) -> list[int]:
    """How often each chunk is held; bytes have no weak references."""
    return [sys.getrefcount(chunk) for chunk in chunks]


@pytest.mark.parametrize("wire", FORMATS)
def test_an_update_reads_as_it_was_sent(wire: Format) -> None:
    update = received(wire)
    for start in range(11):
        stop = min(11, (start // wire.values_per_chunk + 1) * wire.values_per_chunk)
        values = update.parameters(start, stop)
        assert values.dtype == np.float32
        assert values.tolist() == list(range(start + 1, stop + 1))
    assert update.statistics.tolist() == [0.1, 0.2, 0.3]
    assert update.limits == FINITE


@pytest.mark.parametrize("wire", FORMATS)
def test_an_update_keeps_the_bytes_that_came(wire: Format) -> None:
    chunks = chunks_of(wire)
    before = holders(chunks)
    update = received(wire, chunks)
    assert holders(chunks) == [count + 1 for count in before]
    assert update.held_bytes == wire.size_bytes


@pytest.mark.parametrize("wire", FORMATS)
def test_a_released_update_holds_no_bytes(wire: Format) -> None:
    chunks = chunks_of(wire)
    before = holders(chunks)
    update = received(wire, chunks)
    update.release()
    assert holders(chunks) == before
    assert update.held_bytes == 0
    with pytest.raises(RuntimeError):
        update.parameters(0, 1)
    with pytest.raises(RuntimeError):
        _ = update.statistics


@pytest.mark.parametrize("wire", FORMATS)
def test_chunks_are_freed_one_by_one(wire: Format) -> None:
    chunks = chunks_of(wire)
    before = holders(chunks)
    update = received(wire, chunks)
    per = wire.values_per_chunk
    for stop in range(12):
        update.release_before(stop)
        held = holders(chunks)
        freed = stop // per
        assert held == before[:freed] + [count + 1 for count in before[freed:]]
        if stop < 11:
            assert update.parameters(stop, stop + 1).tolist() == [stop + 1]
    with pytest.raises(RuntimeError):
        update.parameters(0, 1)
    assert update.statistics.tolist() == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("wire", FORMATS)
@pytest.mark.parametrize("stretch", [(0, 9), (3, 3), (4, 3)])
def test_parameters_of_two_chunks_or_none_are_not_read(
    wire: Format, stretch: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="one chunk"):
        received(wire).parameters(*stretch)


@pytest.mark.parametrize("wire", FORMATS)
def test_the_representation_shows_no_values(wire: Format) -> None:
    update = received(wire)
    size = wire.size_bytes
    assert repr(update) == f"Update({size} of {size} bytes held)"
    update.release()
    assert repr(update) == f"Update(0 of {size} bytes held)"


@given(st.sampled_from(FORMATS), st.data())
def test_an_update_that_ends_early_is_refused(
    wire: Format, data: st.DataObject
) -> None:
    chunks = chunks_of(wire)
    count = data.draw(st.integers(0, len(chunks) - 1))
    receiver, model = Receiver(wire), ModelReceiver(wire, ModelBuffer(LAYOUT))
    feed(receiver, chunks[:count])
    feed(model, chunks[:count])
    assert receiver.number == count
    assert not receiver.whole
    for finish in (receiver.finish, model.finish):
        with pytest.raises(ProtocolError) as caught:
            finish()
        assert caught.value.code == "transfer-short"
        assert caught.value.got == str(count)


@given(st.sampled_from(FORMATS), st.data())
def test_bytes_cut_at_other_places_are_refused(
    wire: Format, data: st.DataObject
) -> None:
    whole = b"".join(chunks_of(wire))
    places = data.draw(st.lists(st.integers(0, len(whole)), max_size=8).map(sorted))
    cut = [
        whole[start:stop]
        for start, stop in zip([0, *places], [*places, len(whole)], strict=True)
    ]
    if cut == chunks_of(wire):
        return
    receiver = Receiver(wire)
    with pytest.raises(ProtocolError) as caught:
        feed(receiver, cut)
    assert caught.value.code == "chunk-size"


@given(st.sampled_from(FORMATS), st.binary(min_size=0, max_size=40))
def test_anything_after_the_end_is_refused(wire: Format, more: bytes) -> None:
    target = ModelBuffer(LAYOUT)
    receiver, model = Receiver(wire), ModelReceiver(wire, target)
    feed(receiver, chunks_of(wire))
    feed(model, chunks_of(wire))
    assert receiver.whole
    for one_more in (receiver.feed, model.feed):
        with pytest.raises(ProtocolError) as caught:
            one_more(more)
        assert caught.value.code == "chunk-size"
        assert caught.value.expected == "no more chunks"
    assert target.data.tobytes() == filled().data.tobytes()


@given(
    st.sampled_from(FORMATS),
    st.lists(st.binary(max_size=24).filter(lambda c: len(c) != 0), max_size=6),
)
def test_any_chunks_are_taken_or_refused_by_name(
    wire: Format, chunks: list[bytes]
) -> None:
    receiver = Receiver(wire)
    codes = {
        None,
        "chunk-size",
        "chunk-padding",
        "transfer-short",
        "update-not-finite",
    }
    code = None
    try:
        feed(receiver, chunks)
        update = receiver.finish()
        assert np.isfinite(update.statistics).all()
    except ProtocolError as error:
        code = error.code
    assert code in codes


@pytest.mark.parametrize("wire", FORMATS)
def test_a_refused_chunk_is_not_kept(wire: Format) -> None:
    chunk = chunks_of(wire)[0]
    before = sys.getrefcount(chunk)
    receiver = Receiver(wire, limits=ValueLimits(parameter=0.5, statistic=0.5))
    with pytest.raises(ProtocolError):
        receiver.feed(chunk)
    assert receiver.number == 0
    assert sys.getrefcount(chunk) == before


@pytest.mark.parametrize("wire", FORMATS)
def test_an_update_says_which_limits_it_keeps(wire: Format) -> None:
    limits = ValueLimits(parameter=11.0, statistic=0.3)
    receiver = Receiver(wire, limits=limits)
    feed(receiver, chunks_of(wire))
    assert receiver.finish().limits == limits


@pytest.mark.parametrize("wire", FORMATS)
def test_a_model_is_written_into_its_buffer(wire: Format) -> None:
    target = ModelBuffer(LAYOUT)
    receiver = ModelReceiver(wire, target)
    feed(receiver, chunks_of(wire))
    receiver.finish()
    assert target.data.tobytes() == filled().data.tobytes()
