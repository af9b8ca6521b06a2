"""A linear model of two inputs, and the squared error that two owners lower together.

Usable as a plan's `task.py`: class SecureAveraging, option `local_steps`.
"""

from collections.abc import Mapping

import torch
from torch import nn
from typing_extensions import override

from cloister.storage.records import Field, Schema
from cloister.workloads.tensor_batches import Tensors
from cloister.workloads.torch import TorchTask


class SecureAveraging(TorchTask):
    """The task.

    Args:
        local_steps: After so many steps the loss is printed. Only the owner's own
            machine shows it: what an attested node prints, nobody sees.
    """

    def __init__(self, *, local_steps: int = 5) -> None:
        self.local_steps = local_steps
        self.steps = 0

    @override
    def schema(self) -> Schema:
        inputs = Field(name="inputs", dtype="float32", shape=(2,))
        target = Field(name="target", dtype="float32", shape=(1,))
        return Schema(fields=(inputs, target))

    @override
    def model(self) -> nn.Module:
        return nn.Linear(2, 1)

    @override
    def loss(self, model: nn.Module, batch: Tensors) -> torch.Tensor:
        # Summed over the batch, as in the article: its learning rate goes with that.
        loss = self._squares(model, batch).sum()
        self.steps += 1
        if self.steps % self.local_steps == 0:
            print(f"loss {loss.item():.6f}")
        return loss

    @override
    def evaluate(self, model: nn.Module, batch: Tensors) -> Mapping[str, torch.Tensor]:
        return {"loss": self._squares(model, batch).sum()}

    @override
    def predict(self, model: nn.Module, batch: Tensors) -> Mapping[str, torch.Tensor]:
        return {"prediction": model(batch["inputs"])}

    def _squares(self, model: nn.Module, batch: Tensors) -> torch.Tensor:
        squares: torch.Tensor = (model(batch["inputs"]) - batch["target"]) ** 2
        return squares
