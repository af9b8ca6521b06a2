"""Image classification: a residual network on labelled images of ten classes.

The whole task: what a record is, which network learns from it, by which loss, and what
is measured. `cloister init` copies this file as a deployment's task.py, to be changed.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from cloister.storage.records import DataSource, Field, Schema
from cloister.workloads.images import ImageBatches
from cloister.workloads.options import whole_number
from cloister.workloads.resnet import resnet_v2
from cloister.workloads.torch import TorchTask

Images = tuple[torch.Tensor, ...]


class ImageClassification(TorchTask):
    """ResNet v2 on square colour images; the options come from the plan."""

    def __init__(
        self,
        *,
        depth: int = 56,
        image_size: int = 32,
        crop_padding: int = 4,
        flip: bool = True,
        batch_norm_momentum: float = 0.1,
    ) -> None:
        self.depth = depth
        self.image_size = whole_number("image_size", image_size, least=4)
        self.crop_padding = crop_padding
        self.flip = flip
        self.batch_norm_momentum = batch_norm_momentum

    @override
    def schema(self) -> Schema:
        label = Field(name="label", dtype="uint8", below=10)
        size = self.image_size
        image = Field(name="image", dtype="uint8", shape=(3, size, size))
        return Schema(fields=(label, image))

    @override
    def model(self) -> nn.Module:
        return resnet_v2(depth=self.depth, batch_norm_momentum=self.batch_norm_momentum)

    @override
    def train_data(self, source: DataSource) -> ImageBatches:
        return ImageBatches(
            source.split("train"), crop_padding=self.crop_padding, flip=self.flip
        )

    @override
    def held_out_data(self, source: DataSource) -> ImageBatches:
        return ImageBatches(source.split("held-out"))

    @override
    def loss(self, model: nn.Module, batch: Images) -> torch.Tensor:
        images, labels = batch
        return cross_entropy(model(images), labels)

    @override
    def evaluate(self, model: nn.Module, batch: Images) -> Mapping[str, torch.Tensor]:
        images, labels = batch
        logits = model(images)
        return {
            "loss": cross_entropy(logits, labels, reduction="sum"),
            "accuracy": (logits.argmax(dim=1) == labels).sum(),
        }
