"""What of a PyTorch module travels, what stays, and what is refused.

Parameters and the running statistics of normalisation travel. All other persistent
buffers are taken for constants: every node makes them with the model, and they stand in
an exported one. They may depend on nothing but the task, and training must leave them
as they are, or parties would go on with different ones without anybody's knowing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from cloister.errors import ConfigError
from cloister.workloads.batch_norm import RUNNING, BatchNorm

# Those that a recipient's arrays have as well: there is no bfloat16 in NumPy.
_TYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.float32,
    torch.float64,
)


class Constants:
    """A module's persistent buffers that no training changes.

    Args:
        module: The user's model.
        norms: Its normalisation with running statistics, by name.

    Attributes:
        values: The buffers, by name; the module's own.

    Raises:
        ConfigError: If the model holds state that cannot travel (``task-state``).
    """

    __slots__ = ("_module", "values")

    def __init__(self, module: nn.Module, norms: Mapping[str, BatchNorm]) -> None:
        travelling = _travelling(module, norms)
        self._module = module
        self.values: dict[str, torch.Tensor] = {}
        # Not the module's buffers: those that are not persistent are its own affair.
        for name, value in module.state_dict(keep_vars=True).items():
            if name in travelling:
                continue
            if not (isinstance(value, torch.Tensor) and value.dtype in _TYPES):
                raise state_error(
                    f"buffer {name}",
                    expected="a tensor of a type that NumPy has as well",
                    remedy="Give it such a type, or register it with persistent=False.",
                )
            self.values[name] = value

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Holds the block to leaving them alone.

        Raises:
            ConfigError: If one was changed or replaced (``task-state``).
        """
        before = self._versions()
        yield
        for name, version in self._versions().items():
            if version != before[name]:
                raise state_error(
                    f"buffer {name}, which training changes",
                    expected="parameters, the running statistics of batch norm, and "
                    "constants",
                    remedy="Make it a parameter, or do without it.",
                )

    def check_the_same(self, other: Constants) -> None:
        """Refuses constants that another seed would have made otherwise.

        An opened model has those of its own task, wherever it is opened.

        Raises:
            ConfigError: If they differ (``task-state``).
        """
        for name, value in self.values.items():
            if not torch.equal(value, other.values[name]):
                raise state_error(
                    f"buffer {name}, which is drawn at random",
                    expected="constants that do not depend on the seed",
                    remedy="Make it a parameter with requires_grad=False.",
                )

    def _versions(self) -> dict[str, tuple[int, int]]:
        # PyTorch counts the changes of each tensor's values.
        return {
            name: (id(buffer), buffer._version)  # noqa: SLF001
            for name in self.values
            for buffer in (self._module.get_buffer(name),)
        }


def _travelling(module: nn.Module, norms: Mapping[str, BatchNorm]) -> set[str]:
    """Returns the names in a state_dict whose values travel, or follow from such."""
    names = set()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        shaped = not is_lazy(parameter)
        if not (shaped and parameter.dtype == torch.float32):
            raise state_error(
                f"parameter {name}",
                expected="float32 values of a shape known from the start",
                remedy="Give the module its shapes, and leave bfloat16 to the plan.",
            )
        names.add(name)
    for name, norm in norms.items():
        if norm.momentum is None:
            raise state_error(
                f"batch norm {name}",
                expected="a momentum: without one, statistics depend on a count of "
                "batches that no party has",
                remedy="Give the batch norm a momentum, 0.1 for instance.",
            )
    for name, part in module.named_modules(remove_duplicate=False):
        if part in norms.values():
            names.update(join(name, running) for running in RUNNING)
    return names


def join(prefix: str, name: str) -> str:
    """Returns the name of a part's value in the whole module."""
    return f"{prefix}.{name}" if prefix else name


def state_error(what: str, *, expected: str, remedy: str) -> ConfigError:
    """Returns the error that refuses state of a model."""
    return ConfigError(
        f"the task's model holds state that cannot travel: {what}",
        code="task-state",
        expected=expected,
        remedy=remedy,
    )
