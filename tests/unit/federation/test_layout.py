from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.federation.layout import ArraySpec, Layout, ModelBuffer, layout_of

SHAPES = st.lists(
    st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=5
)


def small_layout() -> Layout:
    return layout_of(
        {"w": np.zeros((2, 3)), "b": np.zeros(3)},
        {"mean": np.zeros(3)},
        without_decay=["b"],
    )


def test_statistics_begin_at_the_next_multiple_of_eight_bytes() -> None:
    layout = small_layout()
    assert (layout.parameter_count, layout.statistic_count) == (9, 3)
    assert layout.statistics_offset == 40
    assert layout.size_bytes == 64


def test_views_share_the_buffer() -> None:
    model = ModelBuffer(small_layout())
    arrays = model.arrays()
    arrays["w"][1, 2] = 5
    arrays["mean"][0] = 7
    assert model.parameters[5] == 5
    assert model.statistics[0] == 7
    assert np.frombuffer(model.data[20:24].tobytes(), np.float32)[0] == 5


@given(parameters=SHAPES, statistics=SHAPES)
def test_filling_and_reading_is_a_round_trip(
    parameters: list[tuple[int, ...]], statistics: list[tuple[int, ...]]
) -> None:
    generator = np.random.default_rng(0)
    values = {
        f"{kind}{n}": generator.standard_normal(shape).astype(dtype)
        for kind, dtype, shapes in (
            ("p", np.float32, parameters),
            ("s", np.float64, statistics),
        )
        for n, shape in enumerate(shapes)
    }
    layout = layout_of(
        {name: a for name, a in values.items() if name.startswith("p")},
        {name: a for name, a in values.items() if name.startswith("s")},
    )
    model = ModelBuffer(layout)
    model.fill(values)
    for name, view in model.arrays().items():
        assert np.array_equal(view, values[name])


def test_filling_with_another_shape_is_refused() -> None:
    model = ModelBuffer(small_layout())
    with pytest.raises(ValueError, match="w: shape"):
        model.fill({"w": np.zeros(6), "b": np.zeros(3), "mean": np.zeros(3)})


def test_decay_applies_where_it_is_not_exempted() -> None:
    assert small_layout().decay_mask().tolist() == [1.0] * 6 + [0.0] * 3


def test_the_digest_tells_layouts_apart() -> None:
    w, b = np.zeros((2, 3)), np.zeros(3)
    digests = {
        layout.digest()
        for layout in (
            layout_of({"w": w, "b": b}, {}),
            layout_of({"b": b, "w": w}, {}),
            layout_of({"w": w}, {"b": b}),
            layout_of({"w": w.T, "b": b}, {}),
            layout_of({"w": w, "b": b}, {}, without_decay=["b"]),
        )
    }
    assert len(digests) == 5
    assert small_layout().digest() == small_layout().digest()


def test_a_name_may_not_repeat() -> None:
    spec = ArraySpec(name="w", shape=(), kind="parameter")
    with pytest.raises(ValueError, match="repeat"):
        Layout((spec, spec))


def test_parameters_come_first() -> None:
    statistic = ArraySpec(name="m", shape=(), kind="statistic")
    parameter = ArraySpec(name="w", shape=(), kind="parameter")
    with pytest.raises(ValueError, match="before"):
        Layout((statistic, parameter))


def test_the_representation_shows_no_values() -> None:
    assert repr(ModelBuffer(small_layout())) == "ModelBuffer(64 bytes)"
