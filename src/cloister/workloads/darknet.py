"""Darknet's networks in PyTorch: a configuration becomes a module.

Layers compute what Darknet's do, and begin as they do: kernels drawn from a normal
distribution of variance 2 / fan-in, biases 0, scales 1, running statistics 0. So until
about a hundred steps are done, what a network with batch norm says in an evaluation is
meaningless: the statistics have a momentum of 0.01.

Where Darknet's own parts differ from each other, this is the one that most of them are.
Batch norm divides by sqrt(variance + 1e-5), as its GPU code, its backward pass and its
folded weights do; its forward pass on a CPU divides by sqrt(variance) + 1e-6, and takes
the variance over n - 1. A ``[batchnorm]`` of its own is trained, scale and bias, which
Darknet forgets to do.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import torch
from torch import nn

from cloister.workloads.darknet_config import DarknetConfig
from cloister.workloads.darknet_layers import (
    AvgPool,
    BatchNorm,
    Connected,
    Convolution,
    Dropout,
    Layer,
    MaxPool,
    Softmax,
)
from cloister.workloads.darknet_shapes import Shape, shapes_of

_EPSILON: Final = 1e-5
_MOMENTUM: Final = 0.01
_LEAK: Final = 0.1


def darknet_network(config: DarknetConfig) -> nn.Module:
    """Returns the network: (n, channels, height, width) to (n, classes).

    Its parts are named ``layer0``, ``layer1``, ... as Darknet counts layers. The last
    one gives logits: the softmax itself belongs to the loss, where it can be computed
    without overflow.

    Raises:
        ConfigError: If the layers do not fit together (``darknet-config``).
    """
    shapes = shapes_of(config)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, layer in enumerate(config.layers):
        parts[f"layer{number}"] = _part(layer, shapes[number], shapes[number + 1])
    return nn.Sequential(parts)


def _part(layer: Layer, before: Shape, after: Shape) -> nn.Module:
    part: nn.Module = nn.Flatten()  # the softmax, but for what belongs to the loss
    match layer:
        case Convolution():
            part = _convolution(layer, before)
        case MaxPool():
            part = _maxpool(layer, before, after)
        case AvgPool():
            part = nn.AdaptiveAvgPool2d(1)
        case Connected():
            part = _connected(layer, before)
        case BatchNorm():
            part = _norm(before.channels)
        case Dropout():
            part = nn.Dropout(layer.probability)
        case Softmax():
            pass
    return part


def _convolution(layer: Convolution, before: Shape) -> nn.Module:
    convolution = nn.Conv2d(
        before.channels,
        layer.filters,
        layer.size,
        stride=layer.stride,
        padding=layer.padding,
        groups=layer.groups,
        bias=not layer.batch_normalize,
    )
    fan_in = convolution.weight[0].numel()
    nn.init.normal_(convolution.weight, std=(2 / fan_in) ** 0.5)
    parts: OrderedDict[str, nn.Module] = OrderedDict(convolution=convolution)
    return _finished(parts, convolution.bias, layer, channels=layer.filters)


def _connected(layer: Connected, before: Shape) -> nn.Module:
    linear = nn.Linear(before.values, layer.output, bias=not layer.batch_normalize)
    bound = (2 / before.values) ** 0.5
    nn.init.uniform_(linear.weight, -bound, bound)
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        flat=nn.Flatten(), linear=linear, image=nn.Unflatten(1, (layer.output, 1, 1))
    )
    return _finished(parts, linear.bias, layer, channels=layer.output)


def _finished(
    parts: OrderedDict[str, nn.Module],
    bias: torch.Tensor | None,
    layer: Convolution | Connected,
    *,
    channels: int,
) -> nn.Module:
    """Returns a layer with what follows its weights: batch norm or bias, activation."""
    if bias is not None:
        nn.init.zeros_(bias)
    if layer.batch_normalize:
        parts["norm"] = _norm(channels)
    parts["activation"] = _activation(layer.activation)
    return nn.Sequential(parts)


def _norm(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels, eps=_EPSILON, momentum=_MOMENTUM)
    if norm.running_var is not None:
        norm.running_var.zero_()  # PyTorch would begin with 1
    return norm


def _maxpool(layer: MaxPool, before: Shape, after: Shape) -> nn.Module:
    """Returns the pooling; the smaller half of an odd padding comes first."""
    first, odd = divmod(layer.padding, 2)
    if not odd:
        return nn.MaxPool2d(layer.size, layer.stride, padding=first)
    sides = ((before.height, after.height), (before.width, after.width))
    past = [(n - 1) * layer.stride + layer.size > side for side, n in sides]
    if not first and not any(past):
        return nn.MaxPool2d(layer.size, layer.stride)  # no window reaches the padding
    padding = nn.ConstantPad2d((first, first + 1) * 2, -float("inf"))
    return nn.Sequential(padding, nn.MaxPool2d(layer.size, layer.stride))


def _activation(name: str) -> nn.Module:
    match name:
        case "leaky":
            return nn.LeakyReLU(_LEAK)
        case "relu":
            return nn.ReLU()
        case "logistic":
            return nn.Sigmoid()
        case "tanh":
            return nn.Tanh()
        case "elu":
            return nn.ELU()
        case "linear":
            return nn.Identity()
        case _:
            raise RuntimeError(f"the reader let {name} through")
