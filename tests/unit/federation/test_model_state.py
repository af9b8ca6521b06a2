from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from cloister.errors import ConfigError
from cloister.federation import model_state
from cloister.federation.layout import ArraySpec, Layout, ModelBuffer
from cloister.federation.model_state import BLOCK, SPAN, ModelState
from cloister.federation.own_strategy import OwnStrategy
from cloister.federation.strategies.optimizers import (
    Adagrad,
    Adam,
    Elementwise,
    Sgd,
    Vector,
    Workspace,
    Yogi,
)
from cloister.federation.strategies.strategy import Arrays, State

OPTIMIZERS: list[Elementwise] = [
    Sgd(momentum=0.9, weight_decay=0.01),
    Adagrad(),
    Adam(weight_decay=0.1),
    Yogi(),
]


def layout(*arrays: tuple[int, bool], statistics: int = 2) -> Layout:
    parameters = [
        ArraySpec(name=f"a{i}", shape=(count,), kind="parameter", decay=decay)
        for i, (count, decay) in enumerate(arrays)
    ]
    moments = ArraySpec(name="moments", shape=(statistics,), kind="statistic")
    return Layout((*parameters, moments))


def model_of(made: Layout, *, seed: int = 1) -> ModelBuffer:
    generator = np.random.default_rng(seed)
    model = ModelBuffer(made)
    model.parameters[:] = generator.normal(size=made.parameter_count)
    model.statistics[:] = generator.normal(size=made.statistic_count)
    return model


class GivenMean:
    """A mean that was computed before."""

    def __init__(self, made: Layout, *, seed: int = 2) -> None:
        generator = np.random.default_rng(seed)
        self.values = generator.normal(size=made.parameter_count).astype(np.float32)
        self.values.flags.writeable = False
        self.moments = generator.normal(size=made.statistic_count)

    def mean(self, start: int, stop: int) -> Vector:
        assert stop - start <= model_state.BLOCK
        assert start // model_state.SPAN == (stop - 1) // model_state.SPAN
        return self.values[start:stop]

    def statistics(self) -> NDArray[np.float64]:
        return self.moments


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks and spans in a model of a few values."""
    monkeypatch.setattr(model_state, "BLOCK", 4)
    monkeypatch.setattr(model_state, "SPAN", 8)


def advance(
    state: ModelState, mean: GivenMean, threads: ThreadPoolExecutor, *, count: int = 2
) -> None:
    """Takes one step."""
    state.step(mean, rate=0.1, round_number=1, threads=threads, count=count)


def in_one_piece(
    optimizer: Elementwise, model: ModelBuffer, mean: GivenMean
) -> Workspace:
    """Returns one step over the whole model at once."""
    count = model.layout.parameter_count
    into = Workspace.of(optimizer, count)
    mask = model.layout.decay_mask() * np.float32(optimizer.weight_decay)
    optimizer.step(
        model.parameters,
        tuple(
            np.full(count, optimizer.initial(slot), np.float32)
            for slot in optimizer.slots
        ),
        gradient=mean.values,
        decay=mask if mask.any() else None,
        rate=0.1,
        round_number=1,
        into=into,
    )
    return into


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_step_in_blocks_on_threads_has_the_bits_of_one_in_one_piece(
    optimizer: Elementwise, count: int, threads: ThreadPoolExecutor
) -> None:
    made = layout((13, True), (0, False), (3, False), (19, True))
    model, mean = model_of(made), GivenMean(made)
    whole = in_one_piece(optimizer, model, mean)
    state = ModelState(model, optimizer)
    advance(state, mean, threads, count=count)
    assert state.spans == 5
    assert model.parameters.tobytes() == whole.parameters.tobytes()
    for vector, expected in zip(state.vectors, whole.state, strict=True):
        assert vector.tobytes() == expected.tobytes()
    assert model.statistics.tobytes() == mean.moments.tobytes()


def test_a_step_over_whole_blocks_and_a_rest_has_the_same_bits(
    threads: ThreadPoolExecutor,
) -> None:
    made = layout((SPAN + BLOCK + 3, True))
    model, mean = model_of(made), GivenMean(made)
    optimizer = Sgd(momentum=0.9)
    whole = in_one_piece(optimizer, model, mean)
    state = ModelState(model, optimizer)
    advance(state, mean, threads)
    assert model.parameters.tobytes() == whole.parameters.tobytes()
    assert state.vectors[0].tobytes() == whole.state[0].tobytes()


def test_spans_are_cut_into_whole_blocks() -> None:
    assert SPAN % BLOCK == 0


def test_a_model_without_parameters_has_one_span(threads: ThreadPoolExecutor) -> None:
    made = layout()
    model, mean = model_of(made), GivenMean(made)
    advance(ModelState(model, Adam()), mean, threads)
    assert model.statistics.tobytes() == mean.moments.tobytes()


def test_two_steps_are_in_place_and_allocate_no_second_model(
    threads: ThreadPoolExecutor,
) -> None:
    made = layout((30, True))
    model = model_of(made)
    state = ModelState(model, Sgd(momentum=0.9))
    before = (model.parameters.ctypes.data, state.vectors[0].ctypes.data)
    for seed in (1, 2):
        advance(state, GivenMean(made, seed=seed), threads)
    assert (model.parameters.ctypes.data, state.vectors[0].ctypes.data) == before
    assert state.vectors[0].any()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, Sgd()], ids=repr)
def test_parameters_that_are_no_longer_finite_end_the_training(
    optimizer: Elementwise, value: float, threads: ThreadPoolExecutor
) -> None:
    made = layout((30, True))
    mean = GivenMean(made)
    mean.values = mean.values.copy()
    mean.values[17] = value
    with pytest.raises(ConfigError, match="diverged in round 1") as caught:
        advance(ModelState(model_of(made), optimizer), mean, threads)
    assert caught.value.code == "training-diverged"


def test_a_state_that_is_no_longer_finite_ends_the_training_too(
    threads: ThreadPoolExecutor,
) -> None:
    """Its square overflows: Adam would never move that parameter again."""
    made = layout((30, False))
    mean = GivenMean(made)
    mean.values = mean.values.copy()
    mean.values[17] = 1e30
    with pytest.raises(ConfigError) as caught:
        advance(ModelState(model_of(made), Adam()), mean, threads)
    assert caught.value.code == "training-diverged"


def test_statistics_that_are_not_finite_end_the_training_before_anything_moves(
    threads: ThreadPoolExecutor,
) -> None:
    made = layout((30, True))
    model, mean = model_of(made), GivenMean(made)
    before = model.data.tobytes()
    mean.moments[0] = np.nan
    with pytest.raises(ConfigError) as caught:
        advance(ModelState(model, Sgd()), mean, threads)
    assert caught.value.code == "training-diverged"
    assert model.data.tobytes() == before


class Momentum:
    """SGD with momentum, written as a user would."""

    def initial(self, parameters: Arrays) -> State:
        return {"velocity": {name: 0 * array for name, array in parameters.items()}}

    def step(
        self,
        parameters: Arrays,
        state: State,
        *,
        mean: Arrays,
        rate: float,
        round_number: int,
    ) -> tuple[Arrays, State]:
        assert round_number == 1
        velocity = {
            name: np.float32(0.9) * old + mean[name]
            for name, old in state["velocity"].items()
        }
        moved = {
            name: parameters[name] - np.float32(rate) * step
            for name, step in velocity.items()
        }
        return moved, {"velocity": velocity}


def bits(state: ModelState) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in state.arrays().items()}


def own(strategy: object) -> OwnStrategy:
    return OwnStrategy(
        strategy=strategy,  # type: ignore[arg-type]
        filename="strategy.py",
        simulated=True,
    )


@pytest.mark.usefixtures("small_blocks")
def test_an_own_strategy_steps_as_the_built_in_one_does(
    threads: ThreadPoolExecutor,
) -> None:
    made = layout((13, False), (17, False))
    mean = GivenMean(made)
    one, other = model_of(made), model_of(made)
    first = ModelState(one, Sgd(momentum=0.9))
    second = ModelState(other, own(Momentum()))
    advance(first, mean, threads)
    advance(second, mean, threads)
    assert one.data.tobytes() == other.data.tobytes()
    assert bits(first) == bits(second)


def test_an_own_strategy_that_diverges_leaves_all_as_it_was(
    threads: ThreadPoolExecutor,
) -> None:
    made = layout((13, False))
    model, mean = model_of(made), GivenMean(made)
    state = ModelState(model, own(Momentum()))
    before = bits(state)
    mean.values = mean.values * np.float32(np.inf)
    with pytest.raises(ConfigError) as caught:
        advance(state, mean, threads)
    assert caught.value.code == "training-diverged"
    assert bits(state) == before


def test_the_arrays_of_a_state_are_views_of_all_that_the_next_round_depends_on() -> (
    None
):
    model = model_of(layout((4, True), (0, True), (3, False)))
    state = ModelState(model, Adam())
    arrays = state.arrays()
    assert list(arrays) == [
        "parameter/a0",
        "parameter/a2",
        "statistic/moments",
        *(f"optimizer/{slot}" for slot in Adam().slots),
    ]
    for array in arrays.values():
        array.fill(9)
    for whole in (model.parameters, model.statistics, *state.vectors):
        np.testing.assert_array_equal(whole, 9)
    assert [(spec.name, spec.shape, spec.dtype) for spec in state.specs()] == [
        (name, array.shape, array.dtype.str) for name, array in arrays.items()
    ]
    assert state.specs()[2].dtype == "<f8"


def test_the_vectors_of_an_own_strategy_have_its_names() -> None:
    state = ModelState(model_of(layout((13, False))), own(Momentum()))
    assert state.arrays()["optimizer/velocity"] is state.vectors[0]


def test_a_state_shows_sizes_alone() -> None:
    state = ModelState(model_of(layout((4, True))), Adam())
    assert repr(state) == "ModelState(4 parameters, 2 vectors)"
