"""A PyTorch module whose values lie in one piece, as the engine's buffer has them.

Every parameter and its gradient become views into two flat tensors, so taking over a
model or giving a gradient away is one copy. The running statistics of batch norm
likewise: means first, then variances.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cloister.errors import ConfigError, StorageError
from cloister.federation.layout import ArraySpec, Layout, ModelBuffer
from cloister.workloads.batch_norm import (
    BatchNorm,
    Floats,
    batch_norms,
    moments,
    serve,
)
from cloister.workloads.torch_state import Constants, join


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds PyTorch's randomness inside the block; what was before returns after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class FlatModel:
    """A module with its values laid out flat.

    Args:
        module: The user's model; its parameters and statistics are moved.

    Attributes:
        constants: Its buffers that stay as the task makes them.
        module: The same module.
        layout: The model's arrays: parameters under their own names, then for every
            batch norm ``running_mean``, then ``running_second_moment``.

    Raises:
        ConfigError: If the model holds state that cannot travel.
    """

    __slots__ = (
        "_gradient_views",
        "_gradients",
        "_parts",
        "_running",
        "_weights",
        "constants",
        "layout",
        "module",
    )

    def __init__(self, module: nn.Module) -> None:
        norms = batch_norms(module)
        self.constants = Constants(module, norms)
        self.module = module
        self._parts = tuple(module.modules())
        self.layout = _layout(module, norms)
        weights = torch.empty(self.layout.parameter_count)
        gradients = torch.zeros(self.layout.parameter_count)
        running = torch.empty(self.layout.statistic_count)
        self._gradient_views = _move_parameters(module, weights, gradients)
        _move_statistics(norms, running)
        self._weights: Floats = weights.numpy()
        self._gradients: Floats = gradients.numpy()
        self._running: Floats = running.numpy()

    def training(self) -> nn.Module:
        """Returns the module in training mode."""
        # Setting the mode walks through all parts; looking takes a fortieth of that.
        if not all(part.training for part in self._parts):
            self.module.train()
        return self.module

    def load(self, model: ModelBuffer) -> None:
        """Takes over the values of `model`."""
        if model.layout != self.layout:
            raise RuntimeError("this model has another layout than the task's")
        half = len(self._running) // 2
        np.copyto(self._weights, model.parameters)
        self._running[:half], self._running[half:] = serve(
            model.statistics[:half], model.statistics[half:]
        )

    def trained(self) -> list[nn.Parameter]:
        """Returns the parameters that have gradients, in the model's order."""
        return [p for p, view in self._gradient_views if view is not None]

    def read(self) -> ModelBuffer:
        """Returns a copy of the module's values."""
        model = ModelBuffer(self.layout)
        self.read_into(model)
        return model

    def read_into(self, out: ModelBuffer) -> None:
        """Copies the module's values to `out`."""
        np.copyto(out.parameters, self._weights)
        self._read_statistics(out)

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Collects the gradients of the block, and nothing from before it.

        Raises:
            ConfigError: If the block replaced the gradients, which would lose them,
                or changed a constant.
        """
        self._gradients.fill(0.0)
        # Whatever came before, an optimiser of the task's for instance, may have put
        # others in their place.
        for parameter, view in self._gradient_views:
            parameter.grad = view
        with self.constants.unchanged():
            yield
        for parameter, view in self._gradient_views:
            if parameter.grad is not view:
                raise ConfigError(
                    "the task replaces the model's gradients",
                    code="task-gradients",
                    expected="a loss that leaves the gradients to the engine",
                    remedy="Do not call zero_grad() or backward() in the task.",
                )

    @contextmanager
    def gradient_into(self, out: ModelBuffer) -> Iterator[None]:
        """Collects what the block does to gradients and statistics in `out`.

        The module itself is afterwards as it was before, so a step can be redone.

        Raises:
            ConfigError: If the block replaced the gradients, which would lose them,
                or changed a constant.
        """
        before = self._running.copy()
        try:
            with self.gradients():
                yield
            np.copyto(out.parameters, self._gradients)
            self._read_statistics(out)
        finally:
            np.copyto(self._running, before)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Returns a copy of the module's ordinary ``state_dict``."""
        return {
            name: value.detach().numpy().copy()
            for name, value in self.module.state_dict().items()
        }

    def load_state(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Takes over an ordinary ``state_dict``, bit for bit.

        Raises:
            StorageError: If a name, shape or type differs from the module's, or the
                value of a constant does.
        """
        own = {name: value.numpy() for name, value in self.module.state_dict().items()}
        if own.keys() != arrays.keys():
            differing = sorted(own.keys() ^ arrays.keys())
            raise _mismatch(
                "the model holds other arrays than the task's",
                expected=f"{len(own)} arrays",
                got=f"{len(arrays)}; {differing[0]} is on one side only",
            )
        for name, view in own.items():
            value = arrays[name]
            if value.shape != view.shape or value.dtype != view.dtype:
                raise _mismatch(
                    f"the model's array {name} is not the task's",
                    expected=f"{view.dtype} {view.shape}",
                    got=f"{value.dtype} {value.shape}",
                )
            if name in self.constants.values and not np.array_equal(value, view):
                raise _mismatch(
                    f"the model's constant {name} is not the task's",
                    expected="the same values",
                    got="others",
                )
            np.copyto(view, value)

    def _read_statistics(self, out: ModelBuffer) -> None:
        half = len(self._running) // 2
        out.statistics[:half], out.statistics[half:] = moments(
            self._running[:half], self._running[half:]
        )


def _layout(module: nn.Module, norms: Mapping[str, BatchNorm]) -> Layout:
    # Biases and the scales of normalisation have one axis; decay would only distort
    # them (the reference exempts batch norm). Frozen parameters travel too: their
    # gradient is zero and no decay moves them.
    parameters = tuple(
        ArraySpec(
            name=name,
            shape=tuple(parameter.shape),
            kind="parameter",
            decay=parameter.requires_grad and parameter.ndim > 1,
        )
        for name, parameter in module.named_parameters()
    )
    statistics = tuple(
        ArraySpec(name=join(name, moment), shape=(norm.num_features,), kind="statistic")
        for moment in ("running_mean", "running_second_moment")
        for name, norm in norms.items()
    )
    return Layout(parameters + statistics)


def _move_parameters(
    module: nn.Module, weights: torch.Tensor, gradients: torch.Tensor
) -> list[tuple[nn.Parameter, torch.Tensor | None]]:
    views: list[tuple[nn.Parameter, torch.Tensor | None]] = []
    at = 0
    for parameter in module.parameters():
        end = at + parameter.numel()
        place = weights[at:end].view(parameter.shape)
        place.copy_(parameter.detach())
        parameter.data = place
        view = None
        if parameter.requires_grad:
            view = gradients[at:end].view(parameter.shape)
            parameter.grad = view
        views.append((parameter, view))
        at = end
    return views


def _move_statistics(norms: Mapping[str, BatchNorm], running: torch.Tensor) -> None:
    at = 0
    for name in ("running_mean", "running_var"):
        for norm in norms.values():
            end = at + norm.num_features
            place = running[at:end]
            place.copy_(getattr(norm, name))
            setattr(norm, name, place)
            at = end


def _mismatch(what: str, *, expected: str, got: str) -> StorageError:
    return StorageError(
        what,
        code="model-mismatch",
        expected=expected,
        got=got,
        remedy="Use the task file and options of the plan that trained this model.",
    )
