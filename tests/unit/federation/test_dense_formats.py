from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.federation.layout import Layout, ModelBuffer, layout_of
from cloister.federation.value_limits import ValueLimits
from cloister.federation.wire_format import Bfloat16, Float32, WireFormat

COUNTS = st.integers(0, 40)
CHUNKS = st.sampled_from([8, 16, 24, 64, 1024])
FORMATS = st.sampled_from([Float32, Bfloat16])
Format = type[Float32] | type[Bfloat16]


def layout_with(parameters: int, statistics: int) -> Layout:
    return layout_of({"w": np.zeros(parameters)}, {"m": np.zeros(statistics)})


def filled(layout: Layout, seed: int = 0) -> ModelBuffer:
    """A model whose parameters bfloat16 has exactly."""
    generator = np.random.default_rng(seed)
    model = ModelBuffer(layout)
    model.parameters[...] = generator.integers(-128, 128, layout.parameter_count)
    model.statistics[...] = generator.standard_normal(layout.statistic_count)
    return model


def chunks_of(wire: WireFormat, model: ModelBuffer) -> list[bytes]:
    return [wire.encode(model, number) for number in range(wire.chunk_count)]


def check_all(wire: WireFormat, chunks: list[bytes], limits: ValueLimits) -> None:
    for number, chunk in enumerate(chunks):
        wire.check(number, chunk, limits=limits)


@given(COUNTS, COUNTS, CHUNKS, FORMATS)
def test_a_model_comes_back_whatever_its_size_and_the_chunks(
    parameters: int, statistics: int, chunk_bytes: int, kind: Format
) -> None:
    layout = layout_with(parameters, statistics)
    wire = kind(layout, chunk_bytes=chunk_bytes)
    model, target = filled(layout), ModelBuffer(layout)
    chunks = chunks_of(wire, model)
    assert [len(chunk) for chunk in chunks[:-1]] == [chunk_bytes] * (len(chunks) - 1)
    assert sum(map(len, chunks)) == wire.size_bytes
    for number, chunk in enumerate(chunks):
        wire.decode(number, wire.check(number, chunk), target)
    assert target.data.tobytes() == model.data.tobytes()
    assert np.array_equal(wire.statistics(chunks), model.statistics)


@given(COUNTS, COUNTS, CHUNKS, FORMATS)
def test_parameters_are_read_where_they_lie(
    parameters: int, statistics: int, chunk_bytes: int, kind: Format
) -> None:
    layout = layout_with(parameters, statistics)
    wire = kind(layout, chunk_bytes=chunk_bytes)
    model = filled(layout)
    chunks = chunks_of(wire, model)
    for at in range(parameters):
        number = at // wire.values_per_chunk
        stop = min(parameters, (number + 1) * wire.values_per_chunk)
        read = wire.parameters(number, chunks[number], at, stop)
        assert np.array_equal(read, model.parameters[at:stop])


@given(COUNTS, COUNTS, CHUNKS, FORMATS, st.integers(0, 3000), st.data())
def test_any_other_size_or_number_of_a_chunk_is_refused(
    parameters: int,
    statistics: int,
    chunk_bytes: int,
    kind: Format,
    size: int,
    data: st.DataObject,
) -> None:
    layout = layout_with(parameters, statistics)
    wire = kind(layout, chunk_bytes=chunk_bytes)
    number = data.draw(st.integers(0, wire.chunk_count + 1))
    model = ModelBuffer(layout)
    last = number == wire.chunk_count - 1
    right = wire.size_bytes - number * chunk_bytes if last else chunk_bytes
    if size == right and number < wire.chunk_count:
        size += 1
    for reading in (
        lambda: wire.check(number, bytes(size)),
        lambda: wire.decode(number, bytes(size), model),
    ):
        with pytest.raises(ProtocolError) as caught:
            reading()
        assert caught.value.code == "chunk-size"
        assert caught.value.got == f"{size} bytes"


@given(
    COUNTS.filter(bool),
    COUNTS.filter(bool),
    CHUNKS,
    FORMATS,
    st.sampled_from([np.nan, np.inf, -np.inf, 1e6, -1e6]),
    st.data(),
)
def test_a_value_beyond_the_limits_is_refused_wherever_it_is(
    parameters: int,
    statistics: int,
    chunk_bytes: int,
    kind: Format,
    value: float,
    data: st.DataObject,
) -> None:
    layout = layout_with(parameters, statistics)
    wire = kind(layout, chunk_bytes=chunk_bytes)
    model = filled(layout)
    place = data.draw(st.integers(0, parameters + statistics - 1))
    if place < parameters:
        model.parameters[place] = value
    else:
        model.statistics[place - parameters] = value
    limits = ValueLimits(parameter=1e5, statistic=1e5)
    with pytest.raises(ProtocolError) as caught:
        check_all(wire, chunks_of(wire, model), limits)
    finite = np.isfinite(value)
    assert caught.value.code == ("update-too-large" if finite else "update-not-finite")


@pytest.mark.parametrize("kind", [Float32, Bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_without_other_limits(
    kind: Format, value: float
) -> None:
    layout = layout_with(5, 1)
    model = filled(layout)
    model.parameters[4] = value
    wire = kind(layout)
    with pytest.raises(ProtocolError) as caught:
        wire.check(0, wire.encode(model, 0))
    assert caught.value.code == "update-not-finite"


@pytest.mark.parametrize(
    ("kind", "parameters", "place"), [(Float32, 3, 12), (Bfloat16, 1, 2)]
)
def test_padding_of_anything_but_zeros_is_refused(
    kind: Format, parameters: int, place: int
) -> None:
    layout = layout_with(parameters, 1)
    wire = kind(layout)
    chunk = bytearray(wire.encode(filled(layout), 0))
    chunk[place] = 1
    for reading in (
        lambda: wire.check(0, bytes(chunk)),
        lambda: wire.decode(0, bytes(chunk), ModelBuffer(layout)),
    ):
        with pytest.raises(ProtocolError) as caught:
            reading()
        assert caught.value.code == "chunk-padding"


def test_float32_is_the_buffer_itself() -> None:
    layout = layout_with(13, 3)
    model = filled(layout)
    model.parameters[0] = np.nan
    chunks = chunks_of(Float32(layout, chunk_bytes=16), model)
    assert b"".join(chunks) == model.data.tobytes()


def test_bfloat16_halves_the_parameters_and_keeps_the_statistics() -> None:
    layout = layout_with(13, 3)
    assert Float32(layout).size_bytes == 56 + 24
    assert Bfloat16(layout).size_bytes == 32 + 24


def test_bfloat16_rounds_over_several_blocks() -> None:
    layout = layout_with(150_001, 1)
    model, target = filled(layout), ModelBuffer(layout)
    model.parameters[...] = np.random.default_rng(1).standard_normal(150_001)
    wire = Bfloat16(layout)
    chunk = wire.encode(model, 0)
    wire.decode(0, chunk, target)
    assert np.allclose(target.parameters, model.parameters, rtol=2**-8, atol=0)
    assert np.array_equal(wire.parameters(0, chunk, 0, 150_001), target.parameters)
    again = wire.encode(target, 0)
    assert again == chunk


def test_a_smaller_chunk_after_a_larger_one_holds_nothing_of_it() -> None:
    wire = Bfloat16(layout_with(5, 0), chunk_bytes=8)
    model = filled(wire.layout)
    assert wire.encode(model, 0) != bytes(8)
    assert wire.encode(model, 1)[2:] == bytes(6)


def test_a_model_of_nothing_has_no_chunks() -> None:
    for wire in (Float32(layout_with(0, 0)), Bfloat16(layout_with(0, 0))):
        assert (wire.chunk_count, wire.size_bytes) == (0, 0)
        assert wire.statistics([]).shape == (0,)
