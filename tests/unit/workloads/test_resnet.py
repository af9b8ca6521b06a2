from __future__ import annotations

import pytest
import torch
from torch import nn

from cloister.errors import ConfigError
from cloister.workloads.resnet import resnet_50, resnet_v2
from cloister.workloads.torch_model import seeded


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_depth_56_has_the_reference_networks_parameters() -> None:
    network = resnet_v2(depth=56)
    assert trainable(network) == 855_834
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    # 55 convolutions and the dense layer make 56; three projections come beside them.
    assert len(convolutions) == 55 + 3
    assert [c.stride for c in convolutions if c.stride != (1, 1)] == [(2, 2)] * 4


@pytest.mark.parametrize("size", [8, 32])
def test_images_of_any_size_become_one_logit_a_class(size: int) -> None:
    network = resnet_v2(depth=8, classes=7)
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_the_normalisation_is_the_references() -> None:
    norms = [m for m in resnet_v2(depth=8).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-5}
    assert {norm.momentum for norm in norms} == {0.1}
    slow = resnet_v2(depth=8, batch_norm_momentum=0.003)
    assert {m.momentum for m in slow.modules() if isinstance(m, nn.BatchNorm2d)} == {
        0.003
    }


def test_initial_weights_keep_the_variance_of_their_inputs() -> None:
    with seeded(0):
        network = resnet_v2(depth=56)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            deviation = module.weight.detach().std().item()
            assert deviation * fan_in**0.5 == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("depth", [2, 7, 55, -4, True, 8.0, "56"])
def test_a_depth_without_network_is_refused(depth: object) -> None:
    with pytest.raises(ConfigError, match="depth") as caught:
        resnet_v2(depth=depth)  # type: ignore[arg-type]
    assert caught.value.code == "option-invalid"


@pytest.mark.parametrize("momentum", [0, -0.1, 1.5, True, float("nan"), "0.1"])
def test_a_momentum_that_is_no_weight_is_refused(momentum: object) -> None:
    with pytest.raises(ConfigError, match="batch_norm_momentum"):
        resnet_v2(depth=8, batch_norm_momentum=momentum)  # type: ignore[arg-type]


def test_resnet_50_has_the_parameters_of_its_variant_for_small_images() -> None:
    network = resnet_50()
    assert trainable(network) == 23_520_842
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    # 49 convolutions and the dense layer make 50; four projections come beside them.
    assert len(convolutions) == 49 + 4
    strided = [c.kernel_size for c in convolutions if c.stride != (1, 1)]
    assert strided == [(3, 3), (1, 1)] * 3  # variant 1.5 strides in the 3x3


def test_resnet_50_halves_its_images_three_times_and_ends_in_logits() -> None:
    network = resnet_50(channels=1, classes=7)
    seen: list[tuple[int, ...]] = []
    network.get_submodule("pool").register_forward_pre_hook(
        lambda _, inputs: seen.append(tuple(inputs[0].shape))
    )
    assert network.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert seen == [(1, 2048, 4, 4)]


def test_every_bottleneck_begins_as_its_shortcut() -> None:
    with seeded(0):
        network = resnet_50(batch_norm_momentum=0.2)
    block = network.get_submodule("stage1_block2")
    images = torch.rand(2, 256, 4, 4)
    torch.testing.assert_close(block.train()(images), images)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.2)}
    assert sum(not norm.weight.any() for norm in norms) == 16
    kernel = dict(network.named_parameters())["stage4_block2.conv2.weight"]
    assert kernel.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.02)


def test_resnet_50_refuses_a_momentum_that_is_no_weight() -> None:
    with pytest.raises(ConfigError, match="batch_norm_momentum"):
        resnet_50(batch_norm_momentum=2.0)
