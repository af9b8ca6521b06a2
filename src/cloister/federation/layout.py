"""How a model lies in one contiguous buffer, the same on every node.

The bulk path sends slices of this buffer and never walks arrays one by one. First come
all parameters as float32, then, at the next multiple of eight bytes, all statistics as
float64. Statistics are quantities for which a weighted mean over parties is the right
combination (a task sends a variance as a second moment, for instance), so the server
treats every statistic alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

Kind = Literal["parameter", "statistic"]
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One named array of a model.

    Attributes:
        name: Unique within the model.
        shape: Its shape; empty for a scalar.
        kind: A ``parameter`` is trained by gradients, a ``statistic`` is averaged.
        decay: Whether weight decay applies; parameters only.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    decay: bool = False

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """The arrays of a model in buffer order: parameters, then statistics."""

    arrays: tuple[ArraySpec, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.arrays]
        if len(set(names)) != len(names):
            raise ValueError("array names repeat in a layout")
        kinds = [spec.kind for spec in self.arrays]
        if kinds != sorted(kinds):
            raise ValueError("parameters come before statistics in a layout")

    @property
    def parameters(self) -> tuple[ArraySpec, ...]:
        """The trained arrays."""
        return tuple(s for s in self.arrays if s.kind == "parameter")

    @property
    def statistics(self) -> tuple[ArraySpec, ...]:
        """The averaged arrays."""
        return tuple(s for s in self.arrays if s.kind == "statistic")

    @property
    def parameter_count(self) -> int:
        """Number of trained values (float32)."""
        return sum(spec.count for spec in self.parameters)

    @property
    def statistic_count(self) -> int:
        """Number of averaged values (float64)."""
        return sum(spec.count for spec in self.statistics)

    @property
    def statistics_offset(self) -> int:
        """Byte at which the statistics begin."""
        return -(-self.parameter_count * 4 // _ALIGNMENT) * _ALIGNMENT

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole buffer."""
        return self.statistics_offset + self.statistic_count * 8

    def digest(self) -> str:
        """Returns the SHA-256 (hex) of the layout, to compare two nodes' views."""
        text = "\n".join(
            f"{s.kind} {s.name} {'x'.join(map(str, s.shape))} {s.decay:d}"
            for s in self.arrays
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def decay_mask(self) -> NDArray[np.float32]:
        """Returns 1 where weight decay applies and 0 elsewhere: (parameter_count,)."""
        return np.concatenate(
            [np.full(s.count, s.decay, np.float32) for s in self.parameters]
            or [np.empty(0, np.float32)]
        )


class ModelBuffer:
    """A model's values in one buffer.

    Attributes:
        layout: Where each array lies.
        data: The whole buffer, uint8: (layout.size_bytes,).
        parameters: Float32 view of all parameters: (layout.parameter_count,).
        statistics: Float64 view of all statistics: (layout.statistic_count,).
    """

    __slots__ = ("data", "layout", "parameters", "statistics")

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.data: NDArray[np.uint8] = np.zeros(layout.size_bytes, np.uint8)
        split = layout.statistics_offset
        self.parameters: NDArray[np.float32] = self.data[
            : layout.parameter_count * 4
        ].view(np.float32)
        self.statistics: NDArray[np.float64] = self.data[split:].view(np.float64)

    @override
    def __repr__(self) -> str:
        return f"ModelBuffer({self.layout.size_bytes} bytes)"

    def arrays(self) -> dict[str, NDArray[np.float32] | NDArray[np.float64]]:
        """Returns a view of each array by name, in its own shape."""
        views: dict[str, NDArray[np.float32] | NDArray[np.float64]] = {}
        at = 0
        for spec in self.layout.parameters:
            views[spec.name] = self.parameters[at : at + spec.count].reshape(spec.shape)
            at += spec.count
        at = 0
        for spec in self.layout.statistics:
            views[spec.name] = self.statistics[at : at + spec.count].reshape(spec.shape)
            at += spec.count
        return views

    def fill(self, values: Mapping[str, NDArray[np.generic]]) -> None:
        """Copies every array of the layout from `values`.

        Raises:
            ValueError: If a name is missing or a shape differs.
        """
        for name, view in self.arrays().items():
            value = np.asarray(values[name])
            if value.shape != view.shape:
                raise ValueError(f"{name}: shape {value.shape} is not {view.shape}")
            view[...] = value


def layout_of(
    parameters: Mapping[str, NDArray[np.generic]],
    statistics: Mapping[str, NDArray[np.generic]],
    *,
    without_decay: Iterable[str] = (),
) -> Layout:
    """Returns the layout of the given arrays, in the order they come.

    Args:
        parameters: Trained arrays by name.
        statistics: Averaged arrays by name.
        without_decay: Names of parameters to which weight decay does not apply.
    """
    exempt = frozenset(without_decay)
    return Layout(
        tuple(
            ArraySpec(
                name=name, shape=a.shape, kind="parameter", decay=name not in exempt
            )
            for name, a in parameters.items()
        )
        + tuple(
            ArraySpec(name=name, shape=a.shape, kind="statistic")
            for name, a in statistics.items()
        )
    )
