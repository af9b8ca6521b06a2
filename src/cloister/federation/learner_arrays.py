"""A learner's state as arrays by name, the form in which a mirror takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError
from cloister.storage.mirror.subject import ArraySpec

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


def arrays_of(state: Mapping[Any, Any]) -> dict[str, NDArray[Any]]:
    """Returns a task's arrays as a mirror takes them.

    Raises:
        ConfigError: If they are none.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in state.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise ConfigError(
                "the learner's state is not arrays by name",
                code="task-state",
                expected="a NumPy array for each name",
                got=f"{type(array).__name__} for {ascii(name)[:64]}",
                remedy="Correct state() in the task.",
            )
        arrays[name] = np.asarray(array, order="C")
    return arrays


def same_bytes(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Returns whether two arrays have the same bytes; a NaN is like itself."""
    return np.array_equal(
        one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8)
    )


def specs_of(arrays: Arrays) -> tuple[ArraySpec, ...]:
    """Returns the name, shape and type of each array, by name."""
    return tuple(
        ArraySpec(name=name, shape=array.shape, dtype=array.dtype.str)
        for name, array in sorted(arrays.items())
    )
