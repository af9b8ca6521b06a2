"""Darknet's configuration files: the network and the training that a text describes.

Redmon, "Darknet: Open source neural networks in C"; the format and its defaults are
those of `parser.c` as Plinius ships it. Read are the sections that an image classifier
is made of: ``net``, ``convolutional``, ``maxpool``, ``avgpool``, ``connected``,
``batchnorm``, ``dropout`` and, in the end, ``softmax``. All else is refused by the
number of its line, and so is every key that would change what is computed. Accepted
and not used are the keys by which Darknet distorts pictures while it reads them
(`UNUSED`): here the records are the task's.

No network is made here (`darknet`), and no plan (`darknet_training`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from cloister.workloads.darknet_layers import MOST, Layer, Softmax, read_layer
from cloister.workloads.darknet_lines import (
    Section,
    line_error,
    section_error,
    sections_of,
)

MAX_LAYERS: Final = 1024
_MANY: Final = 999_999_999  # of batches; what the lines can say

Policy = Literal["constant", "step", "steps", "exp", "poly", "sigmoid", "random"]

# How Darknet crops and colours pictures as it reads them from files.
UNUSED: Final = (
    *("angle", "aspect", "center", "exposure", "hue", "max_crop", "max_ratio"),
    *("min_crop", "min_ratio", "saturation"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """``[net]``: what goes in, and how it is trained.

    Attributes:
        channels: Of an image.
        height: In pixels.
        width: In pixels.
        batch: Images of a step.
        max_batches: Steps of the training; 0 where the file does not say.
        learning_rate: Its highest.
        momentum: Of SGD.
        decay: Pull of the weights towards zero.
        policy: How the rate falls.
        power: Exponent of ``poly``, and of the rise over `burn_in` steps.
        burn_in: Steps over which the rate rises.
        step: Steps between two falls of ``step``.
        scale: What such a fall leaves.
        gamma: What each step of ``exp`` leaves.
        lines: Where the keys stand; the section's own line is under ``net``.
    """

    channels: int
    height: int
    width: int
    batch: int
    max_batches: int
    learning_rate: float
    momentum: float
    decay: float
    policy: str
    power: float
    burn_in: int
    step: int
    scale: float
    gamma: float
    lines: Mapping[str, int]

    def line_of(self, key: str) -> int:
        """Returns the line of a key; the section's where the key is left out."""
        return self.lines.get(key, self.lines["net"])


@dataclass(frozen=True, slots=True, kw_only=True)
class DarknetConfig:
    """A configuration, read; whether its layers fit together `darknet_shapes` says.

    Attributes:
        net: Its first section.
        layers: The others, in order; the last one is the softmax.
    """

    net: Net
    layers: tuple[Layer, ...]


def parse_darknet(text: str) -> DarknetConfig:
    """Returns what a Darknet configuration says.

    Raises:
        ConfigError: If it says something else than the above (``darknet-config``).
    """
    net: Net | None = None
    layers: list[Layer] = []
    for section in sections_of(text):
        if net is None:
            net = _net(section)
        elif len(layers) == MAX_LAYERS:
            raise section_error(
                section, "one more layer", expected=f"at most {MAX_LAYERS}"
            )
        elif layers and isinstance(layers[-1], Softmax):
            raise section_error(
                section, "a layer after the softmax", expected="it to be the last"
            )
        else:
            layers.append(read_layer(section))
    if net is None:
        raise line_error(1, "no section", expected="[net] and layers", got="none")
    if not (layers and isinstance(layers[-1], Softmax)):
        raise line_error(
            layers[-1].line if layers else net.lines["net"],
            "the network does not end in probabilities",
            expected="[softmax] as the last section",
            got="another layer" if layers else "no layer",
        )
    return DarknetConfig(net=net, layers=tuple(layers))


def _net(section: Section) -> Net:
    if section.name not in {"net", "network"}:
        raise section_error(section, "another section comes first", expected="[net]")
    sides = {
        key: section.whole(key, 0, least=1, most=MOST)
        for key in ("channels", "height", "width")
    }
    inputs = sides["channels"] * sides["height"] * sides["width"]
    section.neutral("inputs", inputs)
    for key, value in (("subdivisions", 1), ("time_steps", 1), ("adam", 0)):
        section.neutral(key, value)
    for key in ("clip", "notruth", "random"):
        section.neutral(key, 0)
    for key in UNUSED:
        section.number(key, 0)
    policy = section.choice("policy", "constant", get_args(Policy))
    if len(section.numbers("steps")) != len(section.numbers("scales")):
        raise section_error(
            section, "steps and scales do not match", expected="as many of each"
        )
    net = Net(
        **sides,
        batch=section.whole("batch", 1, least=1, most=_MANY),
        max_batches=section.whole("max_batches", 0, least=0, most=_MANY),
        learning_rate=section.number("learning_rate", 0.001),
        momentum=section.number("momentum", 0.9),
        decay=section.number("decay", 0.0001),
        policy=policy,
        power=section.number("power", 4),
        burn_in=section.whole("burn_in", 0, least=0, most=_MANY),
        step=section.whole("step", 1, least=1, most=_MANY),
        scale=section.number("scale", 1),
        gamma=section.number("gamma", 1),
        lines={"net": section.line}
        | {key: entry.line for key, entry in section.entries.items()},
    )
    section.finish()
    return net
