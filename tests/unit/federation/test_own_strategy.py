from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from typing_extensions import override

from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.federation.own_state import OwnState
from cloister.federation.own_strategy import OwnStrategy
from cloister.federation.strategies.strategy import Arrays, State

START = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([7, 8], np.float32),
}
Stepped = Callable[[Arrays, State, Arrays], object]


class Scripted:
    """A strategy that returns what a test wants."""

    def __init__(self, *, initial: object = None, step: Stepped | None = None) -> None:
        self._initial = {} if initial is None else initial
        self._step = step or (lambda parameters, state, _: (parameters, state))

    def initial(self, parameters: Arrays) -> object:
        assert list(parameters) == ["w", "b"]
        return self._initial

    def step(
        self,
        parameters: Arrays,
        state: State,
        *,
        mean: Arrays,
        rate: float,
        round_number: int,
    ) -> object:
        assert (rate, round_number) == (0.5, 3)
        return self._step(parameters, state, mean)


def state_of(
    *, initial: object = None, step: Stepped | None = None, simulated: bool = True
) -> tuple[OwnState, ModelBuffer]:
    model = ModelBuffer(layout_of(START, {}))
    model.fill(START)
    strategy = OwnStrategy(
        strategy=Scripted(initial=initial, step=step),  # type: ignore[arg-type]
        filename="strategy.py",
        simulated=simulated,
    )
    state = OwnState(strategy, model)
    state.mean[:] = 1
    return state, model


def refusal(*, initial: object = None, step: Stepped | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        state_of(initial=initial, step=step)[0].step(rate=0.5, round_number=3)
    assert caught.value.code == "strategy-invalid"
    return caught.value


def test_it_gets_every_array_by_name_in_its_shape() -> None:
    seen: list[Arrays] = []

    def step(parameters: Arrays, state: State, mean: Arrays) -> object:
        seen.extend([parameters, state["s"], mean])
        return parameters, state

    initial = {"s": {"count": np.float32(4), "table": np.ones((3, 1), np.float32)}}
    state, _ = state_of(initial=initial, step=step)
    state.step(rate=0.5, round_number=3)
    parameters, kept, mean = seen
    for name, array in START.items():
        np.testing.assert_array_equal(parameters[name], array)
        np.testing.assert_array_equal(mean[name], np.ones_like(array))
    assert kept["count"].shape == ()
    assert kept["table"].shape == (3, 1)


def test_it_can_write_to_nothing_it_is_given() -> None:
    def step(parameters: Arrays, state: State, mean: Arrays) -> object:
        for array in (*parameters.values(), *state["s"].values(), *mean.values()):
            assert not array.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
        return parameters, state

    state, _ = state_of(initial={"s": START}, step=step)
    state.step(rate=0.5, round_number=3)


def test_what_it_returns_is_taken_over() -> None:
    def step(parameters: Arrays, state: State, mean: Arrays) -> object:
        moved = {name: array - mean[name] for name, array in parameters.items()}
        # In another order, not contiguous, and a scalar of NumPy's.
        return (
            {"b": moved["b"], "w": np.asfortranarray(moved["w"])},
            {"s": {"count": state["s"]["count"] + np.float32(1)}},
        )

    state, model = state_of(initial={"s": {"count": np.float32(4)}}, step=step)
    state.step(rate=0.5, round_number=3)
    np.testing.assert_array_equal(model.parameters, [-1, 0, 1, 2, 3, 4, 6, 7])
    np.testing.assert_array_equal(state.vectors[0], [5])


def test_what_it_was_given_may_come_back_in_another_place() -> None:
    """Else the old parameters would be gone before the state has them."""

    def step(parameters: Arrays, state: State, _: Arrays) -> object:
        return state["last"], {"last": parameters}

    zeros = {name: np.zeros_like(array) for name, array in START.items()}
    state, model = state_of(initial={"last": zeros}, step=step)
    state.step(rate=0.5, round_number=3)
    assert not model.parameters.any()
    np.testing.assert_array_equal(state.vectors[0], [0, 1, 2, 3, 4, 5, 7, 8])


def test_two_slots_are_kept_in_its_own_order() -> None:
    state, _ = state_of(
        initial={"z": {"x": np.float32(1)}, "a": {"x": np.float32(2)}},
        step=lambda parameters, s, _: (parameters, {"a": s["a"], "z": s["z"]}),
    )
    state.step(rate=0.5, round_number=3)
    assert [float(vector[0]) for vector in state.vectors] == [1, 2]


@pytest.mark.parametrize(
    "initial",
    [
        3,
        [("s", START)],
        {1: START},
        {"s": 3},
        {"s": {"w": [1.0]}},
        {"s": {"w": 1.0}},
        {"s": {"w": np.zeros(2)}},
        {"s": {"w": np.zeros(2, ">f4")}},
        {"s": {"w": np.array([np.nan], np.float32)}},
        {"s": {"w": np.array(["x"], object)}},
    ],
    ids=repr,
)
def test_a_state_that_is_no_finite_float32_is_refused(initial: object) -> None:
    assert "initial state" in refusal(initial=initial).what


class Odd(np.ndarray):
    """An array that fails once it is out of the guard."""

    @override
    def reshape(self, *_: object, **__: object) -> NoReturn:
        raise KeyError("the weights are 3.14")


W, B = START["w"], START["b"]
ODD, MATRIX = W.view(Odd), W.view(np.matrix)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (None, "a pair of parameters and state"),
        ((START,), "a pair of parameters and state"),
        ((None, {}), "a mapping by name"),
        (({"w": W}, {}), "the names w, b"),
        (({"w": W, "c": B}, {}), "the names w, b"),
        (({**START, "c": B}, {}), "the names w, b"),
        (({"w": W.T, "b": B}, {}), "the shape (2, 3)"),
        (({"w": W.astype(np.float64), "b": B}, {}), "a float32 array"),
        (({"w": W.tolist(), "b": B}, {}), "a float32 array"),
        (({"w": ODD, "b": B}, {}), "a float32 array"),
        (({"w": MATRIX, "b": B}, {}), "a float32 array"),
        ((START, None), "a mapping by name"),
        ((START, {"more": {}}), "no names"),
    ],
    ids=repr,
)
def test_a_step_that_breaks_the_contract_is_refused_and_nothing_moves(
    returned: object, expected: str
) -> None:
    state, model = state_of(step=lambda *_: returned)
    before = model.data.tobytes()
    with pytest.raises(ConfigError) as caught:
        state.step(rate=0.5, round_number=3)
    assert caught.value.code == "strategy-invalid"
    assert caught.value.expected == expected
    assert model.data.tobytes() == before


@pytest.mark.parametrize("array", [ODD, MATRIX], ids=["odd", "matrix"])
def test_an_array_with_ways_of_its_own_is_no_state(array: object) -> None:
    """NumPy's alone have the same ways outside the guard."""
    assert refusal(initial={"s": {"w": array}}).expected == "a float32 array"


class Name(str):
    """A name that fails once it is out of the guard."""

    __slots__ = ()


def test_a_name_with_ways_of_its_own_is_none() -> None:
    assert refusal(initial={Name("s"): START}).expected == "names that are text"


PATIENT = "patient-1815"


def whispering(**returned: object) -> OwnStrategy:
    """Returns a strategy of a run with real data, whose state is `PATIENT`."""
    scripted = Scripted(
        initial=returned.get("initial", {PATIENT: {PATIENT: W}}),
        step=lambda *_: returned.get("step"),
    )
    return OwnStrategy(
        strategy=scripted,  # type: ignore[arg-type]
        filename="strategy.py",
        simulated=False,
    )


def structured() -> NDArray[np.void]:
    return np.zeros(6, np.dtype([(PATIENT, np.float32)]))


@pytest.mark.parametrize(
    "returned",
    [
        {"initial": type(PATIENT, (), {})()},
        {"initial": {PATIENT: type(PATIENT, (), {})()}},
        {"initial": {PATIENT: {1815: W}}},
        {"initial": {PATIENT: {PATIENT: type(PATIENT, (), {})()}}},
        {"initial": {PATIENT: {PATIENT: structured()}}},
        {"initial": {PATIENT: {PATIENT: np.full(1, np.inf, np.float32)}}},
        {"step": type(PATIENT, (), {})()},
        {"step": (type(PATIENT, (), {})(), {})},
        {"step": ({**START, PATIENT: W}, {})},
        {"step": ({**START, "b": type(PATIENT, (), {})()}, {})},
        {"step": ({**START, "b": structured()}, {})},
        {"step": ({**START, "b": np.zeros(1815, np.float32)}, {})},
        {"step": (START, {})},
        {"step": (START, {PATIENT: {}})},
        {"step": (START, {PATIENT: {PATIENT: B}})},
        {"step": (START, {PATIENT: {PATIENT: structured()}})},
    ],
)
def test_with_real_data_nothing_it_made_is_quoted(
    returned: Mapping[str, object],
) -> None:
    """It has seen values: they could stand in a name, a shape or a type."""
    model = ModelBuffer(layout_of(START, {}))
    with pytest.raises(ConfigError) as caught:
        OwnState(whispering(**returned), model).step(rate=0.5, round_number=3)
    assert caught.value.code == "strategy-invalid"
    assert "1815" not in str(caught.value)
    assert caught.value.expected
    assert caught.value.got == ""


def test_with_real_data_it_is_not_even_said_which_array_is_wrong() -> None:
    told = set()
    for name in START:
        wrong = whispering(initial={}, step=({**START, name: np.float32(0)}, {}))
        with pytest.raises(ConfigError) as caught:
            OwnState(wrong, ModelBuffer(layout_of(START, {}))).step(
                rate=0.5, round_number=3
            )
        told.add(str(caught.value))
    assert len(told) == 1


def test_names_that_a_step_makes_up_are_not_quoted() -> None:
    made_up = "patient-1815"
    error = refusal(step=lambda *_: ({**START, made_up: B}, {}))
    assert made_up not in str(error)
    assert error.got == "3 names, without nothing"


@pytest.mark.parametrize("simulated", [True, False])
def test_what_it_raises_names_its_line_and_quotes_only_simulations(
    *, simulated: bool
) -> None:
    def step(*_: object) -> object:
        raise ValueError("Ada, 1815")

    state, _ = state_of(step=step, simulated=simulated)
    with pytest.raises(ConfigError) as caught:
        state.step(rate=0.5, round_number=3)
    assert caught.value.code == "strategy-failed"
    assert caught.value.what == ("strategy.py failed while making the step of round 3")
    assert ("Ada" in str(caught.value)) is simulated


class Broken(dict[str, object]):
    """A mapping whose items cannot be had."""

    @override
    def __getitem__(self, name: str) -> object:
        raise RuntimeError("no item")


def test_a_mapping_that_fails_ends_in_our_error_as_well() -> None:
    state, _ = state_of(step=lambda *_: (Broken(START), {}))
    with pytest.raises(ConfigError) as caught:
        state.step(rate=0.5, round_number=3)
    assert caught.value.code == "strategy-failed"
