from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.workloads.darknet_texts import TINY, with_layer, with_net

from cloister.errors import ConfigError
from cloister.workloads.darknet_config import parse_darknet
from cloister.workloads.darknet_shapes import MAX_VALUES, shapes_of


def shapes(text: str) -> list[tuple[int, int, int]]:
    found = shapes_of(parse_darknet(text))
    return [(shape.channels, shape.height, shape.width) for shape in found]


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        shapes(text)
    assert caught.value.code == "darknet-config"
    return str(caught.value)


def test_each_layer_changes_the_shape_as_in_darknet() -> None:
    image, rest = (1, 4, 4), (4, 2, 2)
    assert shapes(TINY) == [image, (4, 4, 4), rest, (3, 1, 1), (3, 1, 1)]
    kept = ("[dropout]", "[batchnorm]", "[avgpool]")
    assert shapes(with_layer(*kept)) == [(3, 4, 4)] * 3 + [(3, 1, 1)] * 2


@pytest.mark.parametrize(
    ("size", "stride", "padding", "sides"),
    [(2, 2, 1, (2, 2)), (2, 1, 1, (4, 4)), (3, 2, 2, (2, 2)), (3, 2, 0, (1, 1))],
)
def test_a_maxpools_padding_counts_once(
    size: int, stride: int, padding: int, sides: tuple[int, int]
) -> None:
    lines = ("[maxpool]", f"size={size}", f"stride={stride}", f"padding={padding}")
    assert shapes(with_layer(*lines))[1] == (3, *sides)


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (("[conv]", "size=5"), "window"),
        (("[maxpool]", "size=9", "padding=2"), "window"),
        (("[conv]", "groups=2", "filters=4"), "groups"),
        (("[conv]", "groups=3", "filters=4"), "groups"),
        (("[connected]", "output=1"), "nothing to tell apart"),
    ],
)
def test_a_layer_that_does_not_fit_its_input_is_refused(
    lines: tuple[str, ...], what: str
) -> None:
    message = refused(with_layer(*lines))
    assert what in message
    at = 5 + len(lines) if what.startswith("nothing") else 5
    assert message.startswith(f"line {at} ")


def test_a_network_too_large_for_any_node_is_refused_before_it_is_made() -> None:
    wide = ("[connected]", "output=65536")
    assert refused(with_layer(*wide, *wide)).startswith("line 7 ")
    grown = ("[conv]", "filters=65536", "size=1", "padding=65536")
    assert refused(with_layer(*grown)).startswith("line 5 ")
    large = with_net().replace("=4", f"={2**16}")
    assert str(MAX_VALUES) in refused(large)


@given(
    lines=st.lists(
        st.sampled_from(
            [
                *("[conv]", "[maxpool]", "[connected]", "[avgpool]", "size=3"),
                *("size=2", "stride=2", "filters=6", "groups=3", "padding=1", "pad=1"),
            ]
        ),
        max_size=12,
    )
)
def test_any_layers_fit_or_are_refused_and_sides_never_vanish(lines: list[str]) -> None:
    found = outcome(with_layer(*lines))
    if isinstance(found, ConfigError):
        assert found.code == "darknet-config"
    else:
        assert all(min(shape) >= 1 for shape in found)


def outcome(text: str) -> list[tuple[int, int, int]] | ConfigError:
    try:
        return shapes(text)
    except ConfigError as error:
        return error
