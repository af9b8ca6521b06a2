"""Residual networks for small images: ResNet v2, and ResNet-50.

ResNet v2 is the reference systems' network: He, Zhang, Ren, Sun, "Identity Mappings in
Deep Residual Networks", ECCV 2016, in the variant for CIFAR-10 of TensorFlow's official
models: batch norm and ReLU before each convolution, three stages of 16, 32 and 64
filters, and a 1x1 projection shortcut in the first block of every stage, the first one
included. With depth 56, three channels and ten classes it has 855,834 trainable
parameters.

ResNet-50 is the one their titles name: bottleneck blocks of He, Zhang, Ren, Sun, "Deep
Residual Learning for Image Recognition", CVPR 2016, in the variant 1.5, which strides
in the 3x3 convolution. Images of 32x32 would be four times smaller after the stem for
ImageNet, so it is a 3x3 convolution here, with neither stride nor pooling. With three
channels and ten classes it has 23,520,842 trainable parameters.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from typing_extensions import override

from cloister.workloads.options import option_error, weight, whole_number

_STAGES = ((16, 1), (32, 2), (64, 2))  # filters, stride
_BOTTLENECKS = (  # filters, blocks, stride
    *((64, 3, 1), (128, 4, 2)),
    *((256, 6, 2), (512, 3, 2)),
)
_EXPANSION = 4
_EPSILON = 1e-5


def resnet_v2(
    *,
    depth: int,
    channels: int = 3,
    classes: int = 10,
    batch_norm_momentum: float = 0.1,
) -> nn.Module:
    """Returns a pre-activation residual network: (n, channels, h, w) to (n, classes).

    Args:
        depth: Weighted layers, 6n + 2: 8, 14, 20, ... 56, ... 110.
        channels: Channels of an image.
        classes: Values of the label.
        batch_norm_momentum: Weight of the newest batch in the running statistics. The
            reference has 0.003 (TensorFlow's 0.997), which takes more than a thousand
            rounds to forget where it started.

    Raises:
        ConfigError: If no such network exists for `depth`, or the momentum is not a
            weight.
    """
    blocks, rest = divmod(whole_number("depth", depth, least=8) - 2, 6)
    if rest:
        raise option_error("depth", depth, expected="6n + 2: 8, 14, 20, ... 56, ...")
    momentum = weight("batch_norm_momentum", batch_norm_momentum)
    network = _network(blocks, channels, classes, momentum)
    network.apply(_initialise)
    return network


def resnet_50(
    *, channels: int = 3, classes: int = 10, batch_norm_momentum: float = 0.1
) -> nn.Module:
    """Returns ResNet-50 v1.5 for small images: (n, channels, h, w) to (n, classes).

    Args:
        channels: Channels of an image.
        classes: Values of the label.
        batch_norm_momentum: Weight of the newest batch in the running statistics.

    Raises:
        ConfigError: If the momentum is not a weight.
    """
    momentum = weight("batch_norm_momentum", batch_norm_momentum)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = _BOTTLENECKS[0][0]
    layers["conv"] = _convolution(channels, width, 3, 1)
    layers["norm"] = _norm(width, momentum)
    layers["relu"] = nn.ReLU()
    for stage, (filters, blocks, stride) in enumerate(_BOTTLENECKS, start=1):
        for number in range(1, blocks + 1):
            layers[f"stage{stage}_block{number}"] = _Bottleneck(
                width, filters, stride=stride if number == 1 else 1, momentum=momentum
            )
            width = filters * _EXPANSION
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["dense"] = nn.Linear(width, classes)
    network = nn.Sequential(layers)
    network.apply(_initialise_bottlenecks)
    return network


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, each after batch norm and ReLU."""

    def __init__(
        self, inputs: int, filters: int, *, stride: int, project: bool, momentum: float
    ) -> None:
        super().__init__()
        self.norm1 = _norm(inputs, momentum)
        self.project = _convolution(inputs, filters, 1, stride) if project else None
        self.conv1 = _convolution(inputs, filters, 3, stride)
        self.norm2 = _norm(filters, momentum)
        self.conv2 = _convolution(filters, filters, 3, 1)

    @override
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        active = torch.relu(self.norm1(inputs))
        # The projection sees the activated input, the identity shortcut the raw one.
        shortcut = inputs if self.project is None else self.project(active)
        active = torch.relu(self.norm2(self.conv1(active)))
        result: torch.Tensor = shortcut + self.conv2(active)
        return result


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; ReLU after the sum."""

    def __init__(
        self, inputs: int, filters: int, *, stride: int, momentum: float
    ) -> None:
        super().__init__()
        outputs = filters * _EXPANSION
        self.conv1 = _convolution(inputs, filters, 1, 1)
        self.norm1 = _norm(filters, momentum)
        self.conv2 = _convolution(filters, filters, 3, stride)
        self.norm2 = _norm(filters, momentum)
        self.conv3 = _convolution(filters, outputs, 1, 1)
        self.norm3 = _norm(outputs, momentum)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = _convolution(inputs, outputs, 1, stride)
            parts = OrderedDict(conv=projection, norm=_norm(outputs, momentum))
            self.shortcut = nn.Sequential(parts)

    @override
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        active = torch.relu(self.norm1(self.conv1(inputs)))
        active = torch.relu(self.norm2(self.conv2(active)))
        return torch.relu(self.norm3(self.conv3(active)) + self.shortcut(inputs))


def _network(blocks: int, channels: int, classes: int, momentum: float) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = _STAGES[0][0]
    layers["conv"] = _convolution(channels, width, 3, 1)
    for stage, (filters, stride) in enumerate(_STAGES, start=1):
        for number in range(1, blocks + 1):
            first = number == 1
            layers[f"stage{stage}_block{number}"] = _Block(
                width,
                filters,
                stride=stride if first else 1,
                project=first,
                momentum=momentum,
            )
            width = filters
    layers["norm"] = _norm(width, momentum)
    layers["relu"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["dense"] = nn.Linear(width, classes)
    return nn.Sequential(layers)


def _convolution(inputs: int, filters: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, filters, kernel, stride=stride, padding=kernel // 2, bias=False
    )


def _norm(width: int, momentum: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=_EPSILON, momentum=momentum)


def _initialise(module: nn.Module) -> None:
    # As the reference: variance scaling over the inputs, truncated at two deviations.
    if isinstance(module, nn.Conv2d):
        fan_in = module.weight[0].numel()
        deviation = fan_in**-0.5 / 0.87962566103423978  # of the truncated normal
        nn.init.trunc_normal_(
            module.weight, std=deviation, a=-2 * deviation, b=2 * deviation
        )
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def _initialise_bottlenecks(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
    elif isinstance(module, _Bottleneck):
        # Goyal et al., 2017, "Accurate, large minibatch SGD", 5.1: so every block
        # begins as its shortcut.
        nn.init.zeros_(module.norm3.weight)
