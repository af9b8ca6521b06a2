"""Darknet configurations for the tests: small ones, and Plinius' own file."""

from __future__ import annotations

TINY = """\
[net]
batch=8
height=4
width=4
channels=1
learning_rate=0.1
policy=poly
power=4
max_batches=40

[convolutional]
batch_normalize=1
filters=4
size=3
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[connected]
output=3
activation=linear

[softmax]
"""

# What the file of Plinius says around its layers; what its names say is in the paper.
PLINIUS_NET = """\
[net]
batch=128
subdivisions=1
height=28
width=28
channels=1
max_crop=32
min_crop=32

hue=.1
saturation=.75
exposure=.75

learning_rate=0.1
policy=poly
power=4
max_batches = 500
momentum=0.9
decay=0.0005
"""


def with_net(*lines: str, layers: str = "[avgpool]\n[softmax]") -> str:
    """Returns a configuration whose [net] has further lines, from the fifth on."""
    net = ("[net]", "height=4", "width=4", "channels=3", *lines)
    return "\n".join([*net, layers])


def with_layer(*lines: str) -> str:
    """Returns a configuration with one layer of these lines, from the fifth on."""
    return with_net(layers="\n".join([*lines, "[softmax]"]))
