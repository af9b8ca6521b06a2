"""Writes a network down with `torch.export`, so that others run it without its code.

Nothing in it follows from a record: the inputs that PyTorch wants to see are those the
task makes of records that are all zeros, and no data set is opened for them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree
from typing_extensions import override

from cloister.errors import ConfigError
from cloister.storage.records import Batch, DataSource, Records, Schema, SplitName
from cloister.workloads.tensor_batches import BatchT
from cloister.workloads.torch_model import seeded

if TYPE_CHECKING:
    from cloister.workloads.torch import TorchTask

# PyTorch takes a size of 0 or 1 for a constant, so the batches are larger; and they
# differ in an odd way, so that no other size of the network's follows them.
_SIZES = (3, 8)

# Of other types there is no telling whether two are the same.
_Constants = bool | int | float | str | None
_Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def network_graph(
    task: TorchTask[BatchT], state: Mapping[str, NDArray[np.generic]]
) -> bytes:
    """Returns a task's network with the values `state`, as a ``.pt2`` file's content.

    ``torch.export.load`` reads it, and needs no task for that. The network is in
    evaluation mode and computes in float32. It takes what the task gives it, with any
    number of examples.

    Args:
        task: The task.
        state: The network's ``state_dict``.

    Raises:
        ConfigError: If PyTorch cannot write the network down, for instance since its
            course depends on values, or its shapes on the number of examples
            (``task-graph``).
    """
    with seeded(0):
        module = task.model()
    module.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in state.items()})
    module.eval()
    first, second = (_inputs_of(task, module, examples=n) for n in _SIZES)
    shapes = _shapes(first, second)
    file = io.BytesIO()
    try:
        with torch.no_grad():
            program = torch.export.export(
                module,
                *first,
                dynamic_shapes=shapes.dynamic_shapes(module, *first),  # type: ignore[no-untyped-call]
            )
        _forget_sources(program)
        torch.export.save(program, file)
    # What PyTorch raises depends on the operation that it does not understand; and its
    # compiler, which this imports, looks at the disk.
    except (
        *(RuntimeError, ValueError, TypeError),
        *(LookupError, AssertionError, OSError),
    ) as error:
        raise _error(
            "operations and shapes that torch.export understands",
            got=type(error).__name__,
        ) from error
    return file.getvalue()


class _Zeros(Records):
    """Records that are all zeros, as many as are asked for."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    @override
    def __len__(self) -> int:
        return max(_SIZES)

    @override
    def read(self, indices: NDArray[np.int64]) -> Batch:
        return {
            field.name: np.zeros((len(indices), *field.shape), field.dtype)
            for field in self._schema.fields
        }


class _ZeroSource(DataSource):
    """A data set of zeros."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    @override
    def split(self, name: SplitName) -> _Zeros:
        return _Zeros(self._schema)


class _SeenError(Exception):
    """Ends a loss as soon as the network was called: its inputs are all we want."""


def _inputs_of(task: TorchTask[BatchT], module: nn.Module, *, examples: int) -> _Inputs:
    """Returns zeros of the form in which the task's loss calls its network."""
    seen: list[_Inputs] = []

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _SeenError

    data = task.held_out_data(_ZeroSource(task.schema()))
    batch = data.batch(np.arange(examples), np.random.default_rng(0))
    hook = module.register_forward_pre_hook(see, with_kwargs=True)
    try:
        with torch.no_grad(), seeded(0):
            task.loss(module, batch)
    except _SeenError:
        pass
    finally:
        hook.remove()
    if not seen:
        raise _error("a loss that calls the model", got="one that does not")
    zeros: _Inputs = pytree.tree_map_only(torch.Tensor, torch.zeros_like, seen[0])
    return zeros


def _shapes(first: _Inputs, second: _Inputs) -> torch.export.ShapesCollection:
    """Returns which sizes of the inputs go with the number of examples.

    Raises:
        ConfigError: If the inputs differ in more than that (``task-graph``).
    """
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    ours, form = pytree.tree_flatten(first)
    theirs, their_form = pytree.tree_flatten(second)
    if form != their_form:
        raise _error("inputs of one form", got="another form with other records")
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, torch.Tensor) and one.ndim == other.ndim:
            shapes[one] = {
                axis: Dim.STATIC if size == other.shape[axis] else Dim.DYNAMIC
                for axis, size in enumerate(one.shape)
            }
        elif not (isinstance(one, _Constants) and one == other):
            raise _error(
                "inputs that are tensors, or constants of the task",
                got=f"a {type(one).__name__} that may depend on the records",
            )
    return shapes


def _forget_sources(program: torch.export.ExportedProgram) -> None:
    """Takes out where in which file each operation was written: paths of a machine."""
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)


def _error(expected: str, *, got: str) -> ConfigError:
    return ConfigError(
        "the task's network cannot be written down",
        code="task-graph",
        expected=expected,
        got=got,
        remedy="Change the task's model, or leave [model] graph out of the plan.",
    )
