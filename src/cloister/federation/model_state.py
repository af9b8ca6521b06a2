"""The server's model and its optimiser's state, and how a round's mean moves them.

All of it is allocated once. A built-in optimiser goes over it in place, block by block,
on several threads. A strategy of the plan's own gets the whole mean as named arrays, so
for that and for its results it needs as much memory again. Either way the bits depend
on neither the threads nor the blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from cloister.federation.crew import Crew
from cloister.federation.finite import check_finite
from cloister.federation.layout import ModelBuffer
from cloister.federation.own_state import OwnState
from cloister.federation.own_strategy import OwnStrategy
from cloister.federation.strategies.optimizers import (
    Elementwise,
    Vector,
    Workspace,
)
from cloister.federation.strategies.weight_decay import WeightDecay
from cloister.storage.mirror.subject import ArraySpec

# Values that one operation works on. Its operands, half a MiB each, stay in a cache,
# and it is long beside the interpreter's part of it, which threads take in turns.
BLOCK: Final = 131_072
# Values that a thread takes on at a time.
SPAN: Final = 524_288


class Mean(Protocol):
    """The mean over a round's contributors; asked by several threads at once."""

    def mean(self, start: int, stop: int) -> Vector:
        """Returns the mean of parameters `start` to `stop`, at most one block."""
        ...

    def statistics(self) -> NDArray[np.float64]:
        """Returns the mean of all statistics: (statistic_count,)."""
        ...


class ModelState:
    """All that the next round depends on, beside the plan.

    Args:
        model: The model training starts from; belongs to the state from now on.
        optimizer: A built-in optimiser, or the plan's own strategy.

    Raises:
        ConfigError: If the plan's own strategy cannot make its state.

    Attributes:
        model: Parameters and statistics.
        vectors: The optimiser's state, one flat vector a slot, in order of its slots.
        spans: Number of spans of the parameters; even no parameters are one.
    """

    def __init__(
        self, model: ModelBuffer, optimizer: Elementwise | OwnStrategy
    ) -> None:
        self.model = model
        self._count = model.layout.parameter_count
        self.spans = max(1, -(-self._count // SPAN))
        self._mover: _InPlace | OwnState
        if isinstance(optimizer, OwnStrategy):
            self._mover = OwnState(optimizer, model)
        else:
            self._mover = _InPlace(optimizer, model)
        self.vectors = self._mover.vectors

    @override
    def __repr__(self) -> str:
        return f"ModelState({self._count} parameters, {len(self.vectors)} vectors)"

    def step(
        self,
        mean: Mean,
        *,
        rate: float,
        round_number: int,
        threads: Executor,
        count: int,
    ) -> None:
        """Moves model and state, in place; blocks the calling thread and works on it.

        Args:
            mean: The mean of the round's updates.
            rate: The learning rate of this round.
            round_number: Counts from 1.
            threads: Where more threads come from; the caller's may be one of them.
            count: How many work at once, the caller's among them.

        Raises:
            ConfigError: If training diverged, or the plan's own strategy failed. Of a
                built-in optimiser's step a part is then done: this is no state to go
                on from.
        """
        crew = Crew(threads=threads, count=count)
        with _quiet():
            statistics = check_finite(mean.statistics(), round_number=round_number)
        if isinstance(self._mover, OwnState):
            self._gather(mean, self._mover.mean, crew)
            with _quiet():
                self._mover.step(rate=rate, round_number=round_number)
            self.model.statistics[:] = statistics
            return
        self.model.statistics[:] = statistics
        move = self._mover.move

        def work(span: int) -> None:
            with _quiet():
                for start, stop in self._blocks(span):
                    gradient = mean.mean(start, stop)
                    move(start, stop, gradient, rate=rate, round_number=round_number)

        crew.share(self.spans, work)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns all that the next round depends on, beside the round: views, by name.

        Model tensors lie under ``parameter/NAME`` and ``statistic/NAME`` in their own
        shapes, the optimiser's vectors flat under ``optimizer/SLOT``. What has no
        values is left out. To write into them is to change the state.
        """
        layout = self.model.layout
        kinds = {spec.name: spec.kind for spec in layout.arrays}
        named: dict[str, NDArray[Any]] = {
            f"{kinds[name]}/{name}": view for name, view in self.model.arrays().items()
        }
        for slot, vector in zip(self._mover.slots, self.vectors, strict=True):
            named[f"optimizer/{slot}"] = vector
        return {name: array for name, array in named.items() if array.size}

    def specs(self) -> tuple[ArraySpec, ...]:
        """Returns what `arrays` holds, in its order."""
        return tuple(
            ArraySpec(name=name, shape=array.shape, dtype=array.dtype.str)
            for name, array in self.arrays().items()
        )

    def _gather(self, mean: Mean, into: Vector, crew: Crew) -> None:
        """Puts the whole mean into one vector."""

        def work(span: int) -> None:
            with _quiet():
                for start, stop in self._blocks(span):
                    into[start:stop] = mean.mean(start, stop)

        crew.share(self.spans, work)

    def _blocks(self, span: int) -> Iterator[tuple[int, int]]:
        """Yields where each block of a span begins and ends."""
        end = min((span + 1) * SPAN, self._count)
        for start in range(span * SPAN, end, BLOCK):
            yield start, min(start + BLOCK, end)


class _InPlace:
    """The state of a built-in optimiser, and its step over one block of a model."""

    def __init__(self, optimizer: Elementwise, model: ModelBuffer) -> None:
        self._optimizer = optimizer
        self._parameters = model.parameters
        self._decay = WeightDecay(model.layout, optimizer.weight_decay, block=BLOCK)
        self.slots: tuple[str, ...] = tuple(optimizer.slots)
        # One for each thread at work; kept for the next step.
        self._idle: deque[Workspace] = deque()
        self.vectors: tuple[Vector, ...] = tuple(
            np.full(model.layout.parameter_count, optimizer.initial(slot), np.float32)
            for slot in optimizer.slots
        )

    def move(
        self, start: int, stop: int, gradient: Vector, *, rate: float, round_number: int
    ) -> None:
        """Moves parameters and state `start` to `stop`.

        Raises:
            ConfigError: If a value of either is then not finite.
        """
        try:
            workspace = self._idle.pop()
        except IndexError:
            workspace = Workspace.of(self._optimizer, BLOCK)
        new = workspace.first(stop - start)
        parameters = self._parameters[start:stop]
        state = tuple(vector[start:stop] for vector in self.vectors)
        self._optimizer.step(
            parameters,
            state,
            gradient=gradient,
            decay=self._decay.block(start, stop),
            rate=rate,
            round_number=round_number,
            into=new,
        )
        parameters[:] = check_finite(new.parameters, round_number=round_number)
        for old, values in zip(state, new.state, strict=True):
            old[:] = check_finite(values, round_number=round_number)
        self._idle.append(workspace)


def _quiet() -> AbstractContextManager[object]:
    """Silences NumPy where NaN and infinity are looked for; holds in one thread."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")
