"""One step of a plan's own strategy: read-only arguments in, checked results out.

The strategy's code is measured and signed for by all, but may be wrong. It gets views
it cannot write to, and what it returns is checked for names, shapes and type before
anything of it is taken. Whether a step's values are finite is looked at by whoever
takes them. Where the data is real, a refusal says what was expected and nothing that
the strategy made: values could stand in a name, a shape, a type, or in the choice of
which array is wrong. The names that a step makes up are quoted nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError
from cloister.federation.plan_code import CodeKind, guarded
from cloister.federation.strategies.strategy import Arrays, State, Strategy

STRATEGY = CodeKind(
    noun="strategy",
    named_under="[training] optimizer",
    methods=("initial", "step"),
    advice="docs/how-to/write-a-strategy.md shows a whole one",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnStrategy:
    """A plan's own strategy, behind a guard.

    Attributes:
        strategy: The instance of the user's class.
        filename: Its file's name, for messages.
        simulated: Whether nothing is confidential, so that errors may be quoted.
    """

    strategy: Strategy
    filename: str
    simulated: bool

    def initial(self, parameters: Arrays) -> State:
        """Returns the state before the first round, checked.

        Raises:
            ConfigError: If the code fails, or its state is not finite float32 arrays.
        """
        with self._guard("making its state"):
            whole = "initial state"
            found = self._mapping(self.strategy.initial(parameters), whole)
            state = {}
            for slot, arrays in found.items():
                what = self._quoted(f"slot {slot!r} of its {whole}", whole)
                state[slot] = {
                    name: self._array(array, what)
                    for name, array in self._mapping(arrays, what).items()
                }
                if not all(np.isfinite(array).all() for array in state[slot].values()):
                    raise self._invalid(what, expected="finite values", got="others")
            return state

    def step(
        self,
        parameters: Arrays,
        state: State,
        *,
        mean: Arrays,
        rate: float,
        round_number: int,
    ) -> tuple[Arrays, State]:
        """Returns new parameters and state, of the names and shapes of the old.

        Raises:
            ConfigError: If the code fails, or returns anything else.
        """
        with self._guard(f"making the step of round {round_number}"):
            pair: object = self.strategy.step(
                parameters, state, mean=mean, rate=rate, round_number=round_number
            )
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise self._invalid(
                    "result of its step",
                    expected="a pair of parameters and state",
                    got=type(pair).__name__,
                )
            moved = self._alike(pair[0], "parameters of its step", like=parameters)
            what = "state of its step"
            slots = self._named(self._mapping(pair[1], what), what, like=state)
            return moved, {
                slot: self._alike(
                    slots[slot],
                    self._quoted(f"slot {slot!r} of its step", what),
                    like=old,
                )
                for slot, old in state.items()
            }

    def _guard(self, doing: str) -> AbstractContextManager[None]:
        return guarded(STRATEGY, self.filename, doing, simulated=self.simulated)

    def _alike(self, found: object, what: str, *, like: Arrays) -> Arrays:
        """Returns `found` as arrays with the names, order and shapes of `like`."""
        named = self._named(self._mapping(found, what), what, like=like)
        arrays = {}
        for name, old in like.items():
            where = self._quoted(f"{name!r} in the {what}", what)
            arrays[name] = self._array(named[name], where)
            if arrays[name].shape != old.shape:
                raise self._invalid(
                    where,
                    expected=self._quoted(f"the shape {old.shape}", "the shapes given"),
                    got=f"{arrays[name].shape}",
                )
        return arrays

    def _mapping(self, found: object, what: str) -> dict[str, object]:
        if not isinstance(found, Mapping):
            raise self._invalid(
                what, expected="a mapping by name", got=type(found).__name__
            )
        names = list(found)
        # Text alone: a subclass has ways of its own, outside the guard as well.
        if not all(type(name) is str for name in names):
            raise self._invalid(what, expected="names that are text", got="others")
        return {name: found[name] for name in names}

    def _named(
        self, found: dict[str, object], what: str, *, like: Mapping[str, object]
    ) -> dict[str, object]:
        missing = [name for name in like if name not in found]
        if missing or len(found) != len(like):
            names = f"the names {', '.join(like)}" if like else "no names"
            raise self._invalid(
                what,
                expected=self._quoted(names, "the names given"),
                got=f"{len(found)} names, without {', '.join(missing) or 'nothing'}",
            )
        return found

    def _array(self, found: object, what: str) -> NDArray[np.float32]:
        # Arithmetic on an array without axes gives a scalar of NumPy's: no fault.
        array = np.asarray(found) if type(found) is np.float32 else found
        # Nor a subclass: it has ways of its own, outside the guard as well.
        if type(array) is not np.ndarray:
            raise self._invalid(
                what, expected="a float32 array", got=type(found).__name__
            )
        if array.dtype != np.float32:
            raise self._invalid(
                what, expected="a float32 array", got=f"one of {array.dtype}"
            )
        return array

    def _quoted(self, words: str, otherwise: str) -> str:
        """Returns `words`, of the strategy's making, where nothing is confidential."""
        return words if self.simulated else otherwise

    def _invalid(self, what: str, *, expected: str, got: str) -> ConfigError:
        return ConfigError(
            f"the strategy in {self.filename} breaks its contract: the {what}",
            code="strategy-invalid",
            expected=expected,
            got=self._quoted(got, ""),
            remedy="Mend the strategy; every party then measures it anew.",
        )
