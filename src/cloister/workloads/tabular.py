"""Classification of table rows: logistic regression, or a network of one hidden layer.

The whole task. Columns may be of any size: the network standardises them itself, by
means and variances that the parties learn together, so nobody has to publish those of
its own rows beforehand. They travel as moments, so what every party standardises by is
the mean and variance of all rows together.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import batch_norm, cross_entropy
from typing_extensions import override

from cloister.storage.records import Field, Schema
from cloister.workloads.options import whole_number
from cloister.workloads.tensor_batches import Tensors
from cloister.workloads.torch import TorchTask


class TabularClassification(TorchTask):
    """Rows of numbers in classes; the options come from the plan.

    Args:
        features: Numbers in a row.
        classes: Number of labels.
        hidden: Units of a hidden layer; 0 for logistic regression.
    """

    def __init__(self, *, features: int, classes: int, hidden: int = 0) -> None:
        self.features = whole_number("features", features, least=1)
        self.classes = whole_number("classes", classes, least=2)
        self.hidden = whole_number("hidden", hidden, least=0)

    @override
    def schema(self) -> Schema:
        row = Field(name="features", dtype="float32", shape=(self.features,))
        label = Field(name="label", dtype="uint8", below=self.classes)
        return Schema(fields=(row, label))

    @override
    def model(self) -> nn.Module:
        rows = Standardised(self.features)
        if not self.hidden:
            return nn.Sequential(rows, nn.Linear(self.features, self.classes))
        return nn.Sequential(
            rows,
            nn.Linear(self.features, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.classes),
        )

    @override
    def loss(self, model: nn.Module, batch: Tensors) -> torch.Tensor:
        return cross_entropy(model(batch["features"]), batch["label"])

    @override
    def evaluate(self, model: nn.Module, batch: Tensors) -> Mapping[str, torch.Tensor]:
        logits = model(batch["features"])
        return {
            "loss": cross_entropy(logits, batch["label"], reduction="sum"),
            "accuracy": (logits.argmax(dim=1) == batch["label"]).sum(),
        }

    @override
    def predict(self, model: nn.Module, batch: Tensors) -> Mapping[str, torch.Tensor]:
        return {"probability": model(batch["features"]).softmax(dim=1)}


class Standardised(nn.BatchNorm1d):
    """Columns less their mean, by their deviation: those of all parties' rows.

    A batch norm standardises each training batch by itself. Where a party has mostly
    one class, that takes away the very difference between its rows and others', which
    is what is to be learnt. So this one goes by the running statistics in training too.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features, affine=False)

    @override
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            super().forward(input)  # moves the running statistics
        return batch_norm(input, self.running_mean, self.running_var, eps=self.eps)
