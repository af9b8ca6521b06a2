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
from cloister.workloads.options import option_error, whole_number
from cloister.workloads.resnet import resnet_50, resnet_v2
from cloister.workloads.torch import TorchTask

Images = tuple[torch.Tensor, ...]


class ImageClassification(TorchTask[Images]):
    """A residual network on square colour images; the options come from the plan.

    Args:
        network: ``resnet-v2``, or ``resnet-50``.
        depth: Weighted layers of ResNet v2, 56 where it is left out; ResNet-50 has none
            to choose.
        image_size: Height and width.
        crop_padding: Largest shift of a training image, in pixels.
        flip: Whether half of the training images are mirrored.
        batch_norm_momentum: Weight of the newest batch in the running statistics.
    """

    def __init__(
        self,
        *,
        network: str = "resnet-v2",
        depth: int | None = None,
        image_size: int = 32,
        crop_padding: int = 4,
        flip: bool = True,
        batch_norm_momentum: float = 0.1,
    ) -> None:
        if network not in {"resnet-v2", "resnet-50"}:
            raise option_error("network", network, expected="resnet-v2 or resnet-50")
        if network == "resnet-50" and depth is not None:
            raise option_error("depth", depth, expected="none with resnet-50")
        self.network = network
        self.depth = 56 if depth is None else depth
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
        momentum = self.batch_norm_momentum
        if self.network == "resnet-50":
            return resnet_50(batch_norm_momentum=momentum)
        return resnet_v2(depth=self.depth, batch_norm_momentum=momentum)

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

    @override
    def predict(self, model: nn.Module, batch: Images) -> Mapping[str, torch.Tensor]:
        images, _ = batch
        return {"probability": model(images).softmax(dim=1)}
