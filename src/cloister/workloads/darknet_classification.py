"""Image classification by any network that a Darknet configuration describes.

The whole task. Without options it is Plinius' own: MNIST, and the network of twelve
convolutions that trains on it in 500 steps of 128. Another configuration travels as the
option ``config``, its text and not a path, so that the plan's hash covers it:
``options = { config = '''...''' }``. `darknet_training` says what it wants of the plan.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from cloister.storage.records import Field, Schema
from cloister.workloads.darknet import darknet_network
from cloister.workloads.darknet_config import parse_darknet
from cloister.workloads.darknet_shapes import shapes_of
from cloister.workloads.options import option_error
from cloister.workloads.tensor_batches import Tensors
from cloister.workloads.torch import TorchTask

_NET = """
[net]
batch=128
subdivisions=1
height=28
width=28
channels=1
learning_rate=0.1
policy=poly
power=4
max_batches=500
momentum=0.9
decay=0.0005
"""
_CONVOLUTION = """
[convolutional]
batch_normalize=1
filters={filters}
size=3
stride=1
pad=1
activation=leaky
"""
_HALVED = """
[maxpool]
size=2
stride=2
"""
_DECISION = """
[dropout]
probability=.5

[convolutional]
filters=10
size=1
stride=1
pad=1
activation=leaky

[avgpool]

[softmax]
"""

MNIST_CONFIG = "".join(
    [
        _NET,
        _CONVOLUTION.format(filters=32),
        _HALVED,
        _CONVOLUTION.format(filters=64) * 9,
        _HALVED,
        _CONVOLUTION.format(filters=128),
        _DECISION,
    ]
).lstrip()

_MOST_CLASSES = 256  # what a label of one byte can tell apart


class DarknetClassification(TorchTask):
    """Images in classes, by a Darknet network.

    Args:
        config: Text of a Darknet configuration.
    """

    def __init__(self, *, config: str = MNIST_CONFIG) -> None:
        if not isinstance(config, str):
            raise option_error("config", config, expected="a configuration's text")
        self.config = parse_darknet(config)
        self.classes = shapes_of(self.config)[-1].values
        if self.classes > _MOST_CLASSES:
            raise option_error(
                "config", f"{self.classes} classes", expected="at most 256 classes"
            )

    @override
    def schema(self) -> Schema:
        net = self.config.net
        label = Field(name="label", dtype="uint8", below=self.classes)
        shape = (net.channels, net.height, net.width)
        return Schema(fields=(label, Field(name="image", dtype="uint8", shape=shape)))

    @override
    def model(self) -> nn.Module:
        return darknet_network(self.config)

    @override
    def loss(self, model: nn.Module, batch: Tensors) -> torch.Tensor:
        return cross_entropy(_logits(model, batch), batch["label"])

    @override
    def evaluate(self, model: nn.Module, batch: Tensors) -> Mapping[str, torch.Tensor]:
        logits = _logits(model, batch)
        return {
            "loss": cross_entropy(logits, batch["label"], reduction="sum"),
            "accuracy": (logits.argmax(dim=1) == batch["label"]).sum(),
        }

    @override
    def predict(self, model: nn.Module, batch: Tensors) -> Mapping[str, torch.Tensor]:
        return {"probability": _logits(model, batch).softmax(dim=1)}


def _logits(model: nn.Module, batch: Tensors) -> torch.Tensor:
    """Returns the model's logits for images scaled to [0, 1], as Darknet reads them."""
    images = batch["image"].float() / 255
    # Convolutions on a CPU are a fifth faster with the channels innermost (measured).
    # `contiguous` would leave images of one channel as they are.
    logits: torch.Tensor = model(images.to(memory_format=torch.channels_last))
    return logits
