"""Which shape an image has after each layer of a Darknet configuration.

Every layer takes and gives channels x height x width, as in Darknet; after a connected
layer an image has one pixel. Layers that do not fit their input are refused, and so is
a network too large for any node: a plan's text must not decide how much memory a party
loses before it has looked at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.workloads.darknet_config import DarknetConfig
from cloister.workloads.darknet_layers import (
    AvgPool,
    Connected,
    Convolution,
    Layer,
    MaxPool,
    Softmax,
)
from cloister.workloads.darknet_lines import line_error

# 1 GiB in float32, of weights together and of a single image after any layer.
MAX_VALUES: Final = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """An image between two layers."""

    channels: int
    height: int
    width: int

    @property
    def values(self) -> int:
        """Numbers in the image."""
        return self.channels * self.height * self.width


def shapes_of(config: DarknetConfig) -> tuple[Shape, ...]:
    """Returns the shape of the input and, after it, of every layer's output.

    Raises:
        ConfigError: If a layer does not fit its input, the network is too large, or
            there are fewer than two classes (``darknet-config``).
    """
    net = config.net
    shapes = [Shape(channels=net.channels, height=net.height, width=net.width)]
    weights = 0
    for layer in config.layers:
        before = shapes[-1]
        after = _after(layer, before)
        weights += _weights(layer, before)
        if max(weights, before.values, after.values) > MAX_VALUES:
            raise line_error(
                layer.line,
                "the network grows too large with this layer",
                expected=f"at most {MAX_VALUES} weights, and values of one image",
                got=f"{weights} weights, and {after.values} values",
            )
        shapes.append(after)
    return tuple(shapes)


def _after(layer: Layer, before: Shape) -> Shape:
    match layer:
        case Convolution():
            _check_groups(layer, before)
            sides = _sides(layer, before, padding=2 * layer.padding)
            return Shape(channels=layer.filters, height=sides[0], width=sides[1])
        case MaxPool():
            sides = _sides(layer, before, padding=layer.padding)
            return Shape(channels=before.channels, height=sides[0], width=sides[1])
        case AvgPool():
            return Shape(channels=before.channels, height=1, width=1)
        case Connected():
            return Shape(channels=layer.output, height=1, width=1)
        case Softmax() if before.values < 2:
            raise line_error(
                layer.line,
                "there is nothing to tell apart",
                expected="two classes or more",
                got="one value",
            )
        case _:
            return before


def _sides(
    layer: Convolution | MaxPool, before: Shape, *, padding: int
) -> tuple[int, int]:
    """Returns height and width after a window of the layer's size moved over it."""
    most = min(before.height, before.width) + padding
    if layer.size > most:
        raise line_error(
            layer.line,
            "the image is smaller than the layer's window",
            expected=f"at most {most}, padding included",
            got=f"size {layer.size}",
        )
    height = (before.height + padding - layer.size) // layer.stride + 1
    width = (before.width + padding - layer.size) // layer.stride + 1
    return height, width


def _check_groups(layer: Convolution, before: Shape) -> None:
    if before.channels % layer.groups or layer.filters % layer.groups:
        raise line_error(
            layer.line,
            "channels and filters do not part into groups",
            expected=f"multiples of {layer.groups}",
            got=f"{before.channels} channels and {layer.filters} filters",
        )


def _weights(layer: Layer, before: Shape) -> int:
    match layer:
        case Convolution():
            kernel = layer.size**2 * before.channels // layer.groups
            return layer.filters * kernel
        case Connected():
            return layer.output * before.values
        case _:
            return 0
