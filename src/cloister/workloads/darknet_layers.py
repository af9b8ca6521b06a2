"""The layers of a Darknet configuration: the sections below ``[net]``.

Keys and their defaults are those of Darknet's `parser.c`, as Plinius ships it, and the
short names of sections too. A key is refused where another value than the one that
switches it off would change what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from cloister.workloads.darknet_lines import Section, line_error, section_error

MOST: Final = 2**16  # of a side, a kernel, filters, outputs

Activation = Literal["linear", "leaky", "relu", "logistic", "tanh", "elu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """What layers share: the line in which a layer's section begins."""

    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution(_Layer):
    """``[convolutional]``: filters of size x size, then batch norm or bias."""

    filters: int
    size: int
    stride: int
    padding: int
    groups: int
    batch_normalize: bool
    activation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool(_Layer):
    """``[maxpool]``; `padding` is the sum over both sides, the larger half after."""

    size: int
    stride: int
    padding: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AvgPool(_Layer):
    """``[avgpool]``: the mean of each channel over the whole image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected(_Layer):
    """``[connected]``: all values with all outputs, then batch norm or bias."""

    output: int
    batch_normalize: bool
    activation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNorm(_Layer):
    """``[batchnorm]``: one of its own, with scale and bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropout(_Layer):
    """``[dropout]``: forgets values with some probability, and scales up the rest."""

    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(_Layer):
    """``[softmax]``: probabilities of the classes, under cross-entropy."""


Layer: TypeAlias = (
    Convolution | MaxPool | AvgPool | Connected | BatchNorm | Dropout | Softmax
)


def read_layer(section: Section) -> Layer:
    """Returns the layer that a section describes.

    Raises:
        ConfigError: If it is of another kind, or a key cannot be used.
    """
    read = _LAYERS.get(section.name)
    if read is None:
        raise section_error(
            section,
            "this kind of layer is not supported",
            expected=f"one of {', '.join(_LAYERS)}",
        )
    layer = read(section)
    section.finish()
    return layer


def _convolution(section: Section) -> Convolution:
    size = section.whole("size", 1, least=1, most=MOST)
    # As in Darknet: `pad` decides and `padding` is not looked at beside it.
    same = _switch(section, "pad")
    padding = section.whole("padding", 0, least=0, most=MOST)
    for key in ("binary", "dot", "flipped", "xnor"):
        section.neutral(key, 0)
    return Convolution(
        line=section.line,
        filters=section.whole("filters", 1, least=1, most=MOST),
        size=size,
        stride=section.whole("stride", 1, least=1, most=MOST),
        padding=size // 2 if same else padding,
        groups=section.whole("groups", 1, least=1, most=MOST),
        batch_normalize=_switch(section, "batch_normalize"),
        activation=_activation(section),
    )


def _maxpool(section: Section) -> MaxPool:
    stride = section.whole("stride", 1, least=1, most=MOST)
    size = section.whole("size", stride, least=1, most=MOST)
    # With more, a window could lie wholly outside the image.
    padding = section.whole("padding", size - 1, least=0, most=size - 1)
    return MaxPool(line=section.line, size=size, stride=stride, padding=padding)


def _avgpool(section: Section) -> AvgPool:
    return AvgPool(line=section.line)


def _connected(section: Section) -> Connected:
    return Connected(
        line=section.line,
        output=section.whole("output", 1, least=1, most=MOST),
        batch_normalize=_switch(section, "batch_normalize"),
        activation=_activation(section),
    )


def _batchnorm(section: Section) -> BatchNorm:
    return BatchNorm(line=section.line)


def _dropout(section: Section) -> Dropout:
    probability = section.number("probability", 0.5)
    if not 0 <= probability < 1:
        raise line_error(
            section.line_of("probability"),
            "[dropout] probability cannot be used",
            expected="from 0 to below 1",
            got=str(probability),
        )
    return Dropout(line=section.line, probability=probability)


def _softmax(section: Section) -> Softmax:
    for key, value in (("groups", 1), ("temperature", 1)):
        section.neutral(key, value)
    for key in ("noloss", "spatial"):
        section.neutral(key, 0)
    return Softmax(line=section.line)


# Under Darknet's short names as well.
_LAYERS: Final[Mapping[str, Callable[[Section], Layer]]] = {
    "convolutional": _convolution,
    "conv": _convolution,
    "maxpool": _maxpool,
    "max": _maxpool,
    "avgpool": _avgpool,
    "avg": _avgpool,
    "connected": _connected,
    "conn": _connected,
    "batchnorm": _batchnorm,
    "dropout": _dropout,
    "softmax": _softmax,
    "soft": _softmax,
}


def _activation(section: Section) -> str:
    return section.choice("activation", "logistic", get_args(Activation))


def _switch(section: Section, key: str) -> bool:
    return bool(section.whole(key, 0, least=0, most=1))
