from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.unit.workloads.darknet_texts import TINY, with_layer
from torch import nn

from cloister.errors import ConfigError
from cloister.workloads.darknet import darknet_network
from cloister.workloads.darknet_config import parse_darknet
from cloister.workloads.torch_model import FlatModel, seeded


def network(*lines: str) -> nn.Module:
    with seeded(1):
        return darknet_network(parse_darknet(with_layer(*lines)))


def images(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 4, 4, generator=generator)


def through(*lines: str) -> torch.Tensor:
    """Returns what one layer makes of the images, flat."""
    with torch.no_grad():
        result: torch.Tensor = network(*lines)(images())
        return result


def darknets_maxpool(
    image: NDArray[np.float32], *, size: int, stride: int, padding: int
) -> NDArray[np.float32]:
    """Computes a pooling of (channels, n, n) as Darknet's loops do."""
    channels, side, _ = image.shape
    sides = (side + padding - size) // stride + 1
    result = np.full((channels, sides, sides), -np.inf, np.float32)
    for row, column in np.ndindex(sides, sides):
        for m, n in np.ndindex(size, size):
            y = row * stride + m - padding // 2
            x = column * stride + n - padding // 2
            if 0 <= y < side and 0 <= x < side:
                seen = result[:, row, column]
                result[:, row, column] = np.maximum(seen, image[:, y, x])
    return result


def test_parts_bear_darknets_numbers_and_end_in_logits() -> None:
    with seeded(0):
        made = darknet_network(parse_darknet(TINY))
    assert [name for name, _ in made.named_children()] == [
        f"layer{number}" for number in range(4)
    ]
    assert set(made.state_dict()) == {
        "layer0.convolution.weight",
        "layer0.norm.weight",
        "layer0.norm.bias",
        "layer0.norm.running_mean",
        "layer0.norm.running_var",
        "layer0.norm.num_batches_tracked",
        "layer2.linear.weight",
        "layer2.linear.bias",
    }
    assert made(torch.zeros(5, 1, 4, 4)).shape == (5, 3)
    assert not any(isinstance(part, nn.Softmax) for part in made.modules())


def test_weights_begin_as_darknets() -> None:
    made = network("[conv]", "filters=600", "size=3", "[conn]", "output=100")
    parts = dict(made.named_parameters())
    kernel, matrix = parts["layer0.convolution.weight"], parts["layer1.linear.weight"]
    assert kernel.std().item() == pytest.approx((2 / 27) ** 0.5, rel=0.02)
    assert kernel.mean().item() == pytest.approx(0, abs=0.01)
    bound = (2 / matrix.shape[1]) ** 0.5
    assert matrix.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert matrix.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not parts["layer0.convolution.bias"].any()
    assert not parts["layer1.linear.bias"].any()


def test_filters_in_groups_see_their_own_channels_alone() -> None:
    made = network("[conv]", "filters=300", "size=3", "groups=3")
    kernel = dict(made.named_parameters())["layer0.convolution.weight"]
    assert kernel.shape == (300, 1, 3, 3)
    assert kernel.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


@pytest.mark.parametrize("line", ["[conv]\nfilters=4", "[conn]\noutput=4", ""])
def test_batch_norm_has_darknets_settings_and_takes_the_biass_place(line: str) -> None:
    made = network(f"{line}\nbatch_normalize=1" if line else "[batchnorm]")
    (norm,) = [part for part in made.modules() if isinstance(part, nn.BatchNorm2d)]
    assert (norm.eps, norm.momentum) == (1e-5, 0.01)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert not norm.running_mean.any()
    assert not norm.running_var.any()
    assert (norm.weight == 1).all()
    # Its own bias, and none beside it.
    assert sum(name.endswith("bias") for name, _ in made.named_parameters()) == 1


def test_batch_norm_moves_its_statistics_as_darknet_does() -> None:
    made = network("[batchnorm]").train()
    batch = images(8)
    made(batch)
    state = made.state_dict()
    variance = batch.var(dim=(0, 2, 3), correction=1)
    mean = batch.mean(dim=(0, 2, 3))
    torch.testing.assert_close(state["layer0.running_mean"], 0.01 * mean)
    torch.testing.assert_close(state["layer0.running_var"], 0.01 * variance)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pooling_is_darknets_for_every_padding(size: int, stride: int) -> None:
    for padding in range(size):
        lines = (f"size={size}", f"stride={stride}", f"padding={padding}")
        found = through("[maxpool]", *lines)
        wanted = [
            darknets_maxpool(image, size=size, stride=stride, padding=padding).ravel()
            for image in images().numpy()
        ]
        np.testing.assert_array_equal(found.numpy(), np.stack(wanted))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("linear", -2.0, 2.0),
        ("leaky", -0.2, 2.0),
        ("relu", 0.0, 2.0),
        ("logistic", 0.11920292, 0.88079708),
        ("tanh", -0.96402758, 0.96402758),
        ("elu", -0.86466472, 2.0),
    ],
)
def test_activations_are_darknets(name: str, low: float, high: float) -> None:
    made = network("[conn]", "output=2", f"activation={name}")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        dict(made.named_parameters())["layer0.linear.bias"][:] = torch.tensor([-2, 2.0])
        assert made(images(1)).flatten().tolist() == pytest.approx([low, high])


def test_average_pooling_flattens_and_a_connected_layer_has_one_pixel() -> None:
    expected = images().mean(dim=(2, 3))
    torch.testing.assert_close(through("[avgpool]"), expected)
    deep = ("[conn]", "output=6", "[conv]", "filters=5", "[maxpool]", "[conn]")
    assert network(*deep, "output=2")(images()).shape == (2, 2)


def test_dropout_scales_what_it_keeps_and_does_nothing_in_an_evaluation() -> None:
    made = network("[dropout]", "probability=.75")
    flat = images().flatten(1)
    with seeded(0):
        found = made.train()(images())
    assert (torch.isclose(found, 4 * flat) | (found == 0)).all()
    assert torch.equal(made.eval()(images()), flat)


def test_decay_is_for_weights_alone_as_in_darknet() -> None:
    normed = "[conv]\nfilters=4\nbatch_normalize=1"
    made = network(normed, "[conv]", "[batchnorm]", "[conn]", "output=2")
    decayed = [spec.name for spec in FlatModel(made).layout.parameters if spec.decay]
    assert decayed == [
        "layer0.convolution.weight",
        "layer1.convolution.weight",
        "layer3.linear.weight",
    ]


LAYERS = st.sampled_from(
    [
        "[conv]\nfilters=2\nsize=3\npad=1\nbatch_normalize=1\nactivation=relu",
        "[conv]\nfilters=3\nsize=2\ngroups=1\nstride=2",
        "[maxpool]\nsize=2\nstride=1",
        "[maxpool]\nsize=3\nstride=2",
        "[maxpool]\nsize=2\nstride=2",
        "[connected]\noutput=4\nbatch_normalize=1\nactivation=tanh",
        "[dropout]",
        "[batchnorm]",
        "[avgpool]",
    ]
)


@settings(max_examples=40, deadline=None)
@given(layers=st.lists(LAYERS, max_size=6))
def test_every_configuration_that_is_accepted_computes_the_shapes_it_says(
    layers: list[str],
) -> None:
    text = with_layer(*layers, "[conn]\noutput=3")
    try:
        made = darknet_network(parse_darknet(text))
    except ConfigError:
        return
    assert made.train()(images()).shape == (2, 3)
