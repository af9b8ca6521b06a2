"""A task that computes nothing: its update is the same buffer in every round.

What is left of a round is what the engine makes of it. Every value of the first model
and of the update is a power of two of the same pattern, so that every later model is a
multiple of the first one, in either wire format; a learner looks whether it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from cloister.federation.layout import Layout, ModelBuffer, layout_of
from cloister.federation.task import Evaluation, LearnerSettings, StepReport
from cloister.storage.records import Batch, DataSource, Field, Records, Schema

# A model in bfloat16 is off by 1/256 at most.
_TOLERANCE = 0.01
_SAMPLES = 257


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a model is.

    Attributes:
        parameters: Float32 values.
        tensors: Of equal size.
    """

    parameters: int
    tensors: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the model in float32."""
        return 4 * self.parameters

    def layout(self) -> Layout:
        """Returns the layout: no statistics."""
        # No memory is touched by it.
        part = np.empty(self.parameters // self.tensors, np.float32)
        return layout_of({f"tensor-{n:03}": part for n in range(self.tensors)}, {})


BIG = Size(parameters=25_600_000, tensors=100)
SMALL = Size(parameters=262_144, tensors=8)


def pattern(size: Size) -> ModelBuffer:
    """Returns a fresh buffer of powers of two from 1/128 to 1, of either sign."""
    model = ModelBuffer(size.layout())
    generator = np.random.default_rng(7)
    block = np.exp2(-generator.integers(0, 8, 65536)).astype(np.float32)
    block *= generator.choice(np.array([-1, 1], np.float32), block.size)
    for start in range(0, size.parameters, block.size):
        part = model.parameters[start : start + block.size]
        part[:] = block[: part.size]
    return model


class Nothing:
    """The task.

    Args:
        size: How large the model is.
        gate: Called before every step with the round's number; may wait.
    """

    def __init__(
        self, size: Size, *, gate: Callable[[int], None] = lambda _: None
    ) -> None:
        self._size = size
        self._gate = gate

    def schema(self) -> Schema:
        """Returns that a record is a byte."""
        return Schema(fields=(Field(name="label", dtype="uint8"),))

    def initial_model(self, *, seed: int) -> ModelBuffer:  # noqa: ARG002 - none is used
        """Returns the pattern."""
        return pattern(self._size)

    def export(self, model: ModelBuffer) -> dict[str, NDArray[np.generic]]:
        """Returns views: nothing is changed between this and the seal."""
        return dict(model.arrays())

    def load_exported(self, arrays: Mapping[str, NDArray[np.generic]]) -> ModelBuffer:
        """Returns the model again."""
        model = ModelBuffer(self._size.layout())
        model.fill(arrays)
        return model

    def learner(self, source: DataSource, settings: LearnerSettings) -> Idle:  # noqa: ARG002
        """Returns a learner that looks at no data."""
        return Still(self._gate)


class Shared(Nothing):
    """The task of light workers: all of a process have their models in one buffer.

    Each receives the same bytes in the same round, so it does not matter who wrote
    them last. Their updates are zeros that no memory was ever taken for.
    """

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self._model = pattern(size)

    @override
    def initial_model(self, *, seed: int) -> ModelBuffer:
        """Returns the one buffer."""
        return self._model

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> Idle:
        """Returns a learner that does not even fill its update."""
        return Idle()


class Idle:
    """A learner that does nothing at all."""

    def load(self, model: ModelBuffer) -> None:
        """Takes nothing."""

    def step(self, round_number: int, out: ModelBuffer) -> StepReport:  # noqa: ARG002
        """Leaves the update as it is."""
        return StepReport(examples=1, loss_sum=1.0)

    def evaluate(self) -> Evaluation:
        """Evaluates nothing."""
        return Evaluation(examples=1, sums={"accuracy": 1.0})


class Still(Idle):
    """A learner whose update is filled once; looks at a few values of every model.

    Args:
        gate: Called before every step.
    """

    def __init__(self, gate: Callable[[int], None]) -> None:
        self._gate = gate
        self._filled: ModelBuffer | None = None
        self._factor = 1.0

    @override
    def load(self, model: ModelBuffer) -> None:
        """Sees that the model is a multiple of the pattern.

        Raises:
            RuntimeError: If it is not: the round did not compute what it should.
        """
        if self._filled is None:
            return
        chosen = np.linspace(0, model.parameters.size - 1, _SAMPLES).astype(np.int64)
        factors = model.parameters[chosen] / self._filled.parameters[chosen]
        self._factor = float(factors[0])
        if not np.allclose(factors, self._factor, rtol=_TOLERANCE, atol=0):
            raise RuntimeError("the model is not what its updates make of it")

    @override
    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        """Waits at the gate; fills the update if that has not been done."""
        if self._filled is not out:
            layout = out.layout
            size = Size(
                parameters=layout.parameter_count, tensors=len(layout.parameters)
            )
            out.parameters[:] = pattern(size).parameters
            self._filled = out
        self._gate(round_number)
        return super().step(round_number, out)


class Gate:
    """Lets a worker train in bursts, each begun by a line on standard input.

    Args:
        burst: Rounds in each; the gate is shut before the first.
    """

    def __init__(self, burst: int) -> None:
        self._burst = burst

    def __call__(self, round_number: int) -> None:
        """Waits, if a burst is over; exits with whoever holds the other end."""
        if (round_number - 1) % self._burst:
            return
        print(json.dumps({"event": "at-gate", "round": round_number}), flush=True)
        wait_for_word()


def wait_for_word() -> None:
    """Waits for a line on standard input.

    Raises:
        SystemExit: If there will be none.
    """
    if not sys.stdin.readline():
        raise SystemExit("the benchmark is gone")


class NoData:
    """A data set that nobody reads."""

    def split(self, name: str) -> Records:  # noqa: ARG002 - both are the same
        """Returns no records."""
        return _NoRecords()


class _NoRecords:
    def __len__(self) -> int:
        return 1

    def read(self, indices: NDArray[np.int64]) -> Batch:
        return {"label": np.zeros(len(indices), np.uint8)}
