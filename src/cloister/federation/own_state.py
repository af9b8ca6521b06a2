"""What a plan's own strategy keeps, in flat vectors, and how its step moves a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from cloister.federation.finite import check_finite
from cloister.federation.layout import Layout, ModelBuffer
from cloister.federation.own_strategy import OwnStrategy
from cloister.federation.strategies.optimizers import Vector
from cloister.federation.strategies.strategy import Arrays

_Shapes = Mapping[str, tuple[int, ...]]


class OwnState:
    """What a plan's own strategy keeps between rounds.

    Args:
        strategy: The strategy, guarded.
        model: The model it moves.

    Raises:
        ConfigError: If the strategy cannot make its state.

    Attributes:
        vectors: One flat vector for each slot, in the strategy's order.
        slots: The slots' names, in that order.
    """

    def __init__(self, strategy: OwnStrategy, model: ModelBuffer) -> None:
        self._strategy = strategy
        self._model = model
        self._shapes = _shapes_of(model.layout)
        self._mean = np.zeros_like(model.parameters)
        initial = strategy.initial(_views(_read_only(model.parameters), self._shapes))
        self._shapes_of_slots: dict[str, _Shapes] = {
            slot: {name: array.shape for name, array in arrays.items()}
            for slot, arrays in initial.items()
        }
        self.slots: tuple[str, ...] = tuple(initial)
        self.vectors: tuple[Vector, ...] = tuple(
            _flat(arrays.values()) for arrays in initial.values()
        )

    @property
    def mean(self) -> Vector:
        """Where the caller puts the mean of a round before its step."""
        return self._mean

    def step(self, *, rate: float, round_number: int) -> None:
        """Moves the model's parameters and the state, in place.

        Raises:
            ConfigError: If the strategy fails, breaks its contract, or diverged; model
                and state are then as before.
        """
        parameters = self._model.parameters
        moved, kept = self._strategy.step(
            _views(_read_only(parameters), self._shapes),
            {
                slot: _views(_read_only(vector), shapes)
                for (slot, shapes), vector in zip(
                    self._shapes_of_slots.items(), self.vectors, strict=True
                )
            },
            mean=_views(_read_only(self._mean), self._shapes),
            rate=rate,
            round_number=round_number,
        )
        # Flat copies first: what is returned may be a view of what it was given.
        results = [_flat(arrays.values()) for arrays in (moved, *kept.values())]
        for result in results:
            check_finite(result, round_number=round_number)
        for vector, result in zip((parameters, *self.vectors), results, strict=True):
            vector[:] = result


def _shapes_of(layout: Layout) -> _Shapes:
    return {spec.name: spec.shape for spec in layout.parameters}


def _flat(arrays: Iterable[NDArray[np.float32]]) -> Vector:
    """Returns a copy of all values, array after array: (values,)."""
    return np.concatenate(
        [np.empty(0, np.float32), *(array.reshape(-1) for array in arrays)]
    )


def _read_only(vector: Vector) -> Vector:
    view = vector.view()
    view.flags.writeable = False
    return view


def _views(vector: Vector, shapes: _Shapes) -> Arrays:
    """Returns a view of each array in a flat vector; read-only if the vector is."""
    found = {}
    at = 0
    for name, shape in shapes.items():
        stop = at + math.prod(shape)
        found[name] = vector[at:stop].reshape(shape)
        at = stop
    return found
