from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.workloads.darknet_texts import PLINIUS_NET, TINY, with_layer, with_net

from cloister.errors import ConfigError
from cloister.workloads.darknet_config import (
    MAX_LAYERS,
    UNUSED,
    DarknetConfig,
    parse_darknet,
)
from cloister.workloads.darknet_layers import (
    AvgPool,
    BatchNorm,
    Connected,
    Convolution,
    Dropout,
    MaxPool,
    Softmax,
)


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_darknet(text)
    assert caught.value.code == "darknet-config"
    return str(caught.value)


def outcome(text: str) -> DarknetConfig | ConfigError:
    try:
        return parse_darknet(text)
    except ConfigError as error:
        return error


def test_a_configuration_is_read_as_it_stands() -> None:
    config = parse_darknet(TINY)
    assert config.layers == (
        Convolution(
            line=11,
            filters=4,
            size=3,
            stride=1,
            padding=1,
            groups=1,
            batch_normalize=True,
            activation="leaky",
        ),
        MaxPool(line=18, size=2, stride=2, padding=1),
        Connected(line=22, output=3, batch_normalize=False, activation="linear"),
        Softmax(line=26),
    )
    net = config.net
    assert (net.channels, net.height, net.width, net.batch) == (1, 4, 4, 8)
    assert (net.policy, net.power, net.max_batches) == ("poly", 4, 40)
    assert (net.line_of("power"), net.line_of("momentum")) == (8, 1)


def test_what_is_left_out_is_what_darknet_takes() -> None:
    layers = ("[conv]", "[max]", "[avg]", "[conn]", "[batchnorm]", "[dropout]")
    config = parse_darknet(with_layer(*layers))
    assert config.layers == (
        Convolution(
            line=5,
            filters=1,
            size=1,
            stride=1,
            padding=0,
            groups=1,
            batch_normalize=False,
            activation="logistic",
        ),
        MaxPool(line=6, size=1, stride=1, padding=0),
        AvgPool(line=7),
        Connected(line=8, output=1, batch_normalize=False, activation="logistic"),
        BatchNorm(line=9),
        Dropout(line=10, probability=0.5),
        Softmax(line=11),
    )
    net = config.net
    assert (net.batch, net.max_batches, net.burn_in) == (1, 0, 0)
    assert (net.learning_rate, net.momentum, net.decay) == (0.001, 0.9, 0.0001)
    assert (net.policy, net.power, net.step, net.scale) == ("constant", 4, 1, 1)


def test_the_file_that_plinius_ships_is_accepted_with_its_unused_keys() -> None:
    net = parse_darknet(
        f"{PLINIUS_NET}[avgpool]\n[dropout]\n[conn]\noutput=10\n[soft]"
    ).net
    assert (net.batch, net.max_batches, net.decay) == (128, 500, 0.0005)
    assert not set(UNUSED) & set(type(net).__slots__)


@pytest.mark.parametrize("key", UNUSED)
def test_an_unused_key_must_still_be_a_number(key: str) -> None:
    parse_darknet(with_net(f"{key}=.75"))
    assert refused(with_net(f"{key}=much")).startswith("line 5 ")


@pytest.mark.parametrize(
    "line",
    [
        *("subdivisions=2", "time_steps=3", "adam=1", "random=1", "notruth=1"),
        *("clip=0.1", "inputs=47", "channels=0", "B1=.9", "mosaic=1", "policy=cosine"),
        *("batch=0", "batch=1e2", "max_batches=-1", "steps=1,2", "burn_in=-1"),
    ],
)
def test_a_setting_that_would_change_training_unseen_is_refused(line: str) -> None:
    if line.startswith("channels"):
        text = with_net().replace("channels=3", line)
        assert refused(text).startswith("line 4 ")
    elif line.startswith("steps"):
        assert "steps and scales" in refused(with_net(line))
    else:
        assert refused(with_net(line)).startswith("line 5 ")


def test_inputs_may_say_what_the_sides_say() -> None:
    assert parse_darknet(with_net("inputs=48")).net.channels == 3


@pytest.mark.parametrize("key", ["channels", "height", "width"])
def test_every_side_of_an_image_must_be_there(key: str) -> None:
    text = "\n".join(x for x in with_net().split("\n") if not x.startswith(key))
    assert refused(text).startswith(f"line 1 of the Darknet configuration: [net] {key}")


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("conv", "filters=0"),
        ("conv", "filters=65537"),
        ("conv", "pad=2"),
        ("conv", "xnor=1"),
        ("conv", "binary=1"),
        ("conv", "flipped=1"),
        ("conv", "dot=.1"),
        ("conv", "dilation=2"),
        ("conv", "learning_rate=0"),
        ("conv", "stopbackward=1"),
        ("conv", "activation=mish"),
        ("conv", "batch_normalize=yes"),
        ("max", "padding=1"),
        ("avg", "size=2"),
        ("conn", "output=0"),
        ("dropout", "probability=1"),
        ("dropout", "probability=-.1"),
        ("softmax", "groups=2"),
        ("softmax", "temperature=2"),
        ("softmax", "spatial=1"),
        ("softmax", "tree=9k.tree"),
    ],
)
def test_a_setting_that_would_change_a_layer_unseen_is_refused(
    section: str, line: str
) -> None:
    assert refused(with_layer(f"[{section}]", line)).startswith("line 6 ")


@pytest.mark.parametrize("kind", ["route", "cost", "crop", "", "net", "conv "])
def test_a_section_of_another_kind_is_refused(kind: str) -> None:
    if kind == "conv ":
        assert parse_darknet(with_layer("[conv ]")).layers[0].line == 5
    else:
        assert refused(with_layer(f"[{kind}]")).startswith("line 5 ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("# nothing\n\n", 1),
        ("[softmax]", 1),
        ("[net]\nheight=1\nwidth=1\nchannels=2", 1),
        (with_net(layers="[avg]"), 5),
        (with_net(layers="[softmax]\n[avg]"), 6),
        (with_net(layers="[avg]\n" * (MAX_LAYERS + 1)), MAX_LAYERS + 5),
    ],
)
def test_a_network_without_beginning_or_end_is_refused(text: str, line: int) -> None:
    assert refused(text).startswith(f"line {line} ")


def test_pad_wins_over_padding_as_in_darknet() -> None:
    for lines, padding in (
        (("size=5", "pad=1", "padding=4"), 2),
        (("size=5", "padding=4"), 4),
        (("size=1", "pad=1"), 0),
    ):
        layer = parse_darknet(with_layer("[conv]", *lines)).layers[0]
        assert isinstance(layer, Convolution)
        assert layer.padding == padding


@given(content=st.binary(max_size=200))
def test_any_bytes_end_in_our_error(content: bytes) -> None:
    refused(content.decode("latin-1"))


@given(data=st.data())
def test_a_line_changed_in_any_way_is_read_or_refused_by_some_line(
    data: st.DataObject,
) -> None:
    lines = TINY.split("\n")
    at = data.draw(st.integers(0, len(lines) - 1))
    change = st.text(alphabet="[]=#;\n 0123456789.-eaz", max_size=12)
    lines[at] = data.draw(st.just(lines[at]) | change) + data.draw(change)
    found = outcome("\n".join(lines))
    if isinstance(found, ConfigError):
        assert found.code == "darknet-config"
        assert found.what.startswith("line ")
    else:
        assert isinstance(found.layers[-1], Softmax)
