from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.federation.strategies.optimizers import (
    Adagrad,
    Adam,
    Elementwise,
    Sgd,
    Vector,
    Workspace,
    Yogi,
)

COUNT = 64
STEPS = 30
MASK = (np.arange(COUNT) % 3 > 0).astype(np.float32)

ALL = [
    Sgd(),
    Sgd(momentum=0.9),
    Sgd(momentum=0.9, nesterov=True),
    Adagrad(),
    Adam(),
    Yogi(),
]
Theirs = Callable[[list[dict[str, object]], float], torch.optim.Optimizer]
PAIRS: list[tuple[Callable[[float], Elementwise], Theirs]] = [
    (lambda d: Sgd(weight_decay=d), lambda p, r: torch.optim.SGD(p, lr=r)),
    (
        lambda d: Sgd(momentum=0.9, weight_decay=d),
        lambda p, r: torch.optim.SGD(p, lr=r, momentum=0.9),
    ),
    (
        lambda d: Sgd(momentum=0.9, nesterov=True, weight_decay=d),
        lambda p, r: torch.optim.SGD(p, lr=r, momentum=0.9, nesterov=True),
    ),
    (lambda d: Adagrad(weight_decay=d), lambda p, r: torch.optim.Adagrad(p, lr=r)),
    (
        lambda d: Adam(beta1=0.8, beta2=0.95, weight_decay=d),
        lambda p, r: torch.optim.Adam(p, lr=r, betas=(0.8, 0.95)),
    ),
]
PAIR_NAMES = ["sgd", "momentum", "nesterov", "adagrad", "adam"]


def vector(generator: np.random.Generator, count: int = COUNT) -> Vector:
    """Returns random values that nobody may write to."""
    values = generator.normal(size=count).astype(np.float32)
    values.flags.writeable = False
    return values


def state_of(optimizer: Elementwise, count: int) -> tuple[Vector, ...]:
    return tuple(
        np.full(count, optimizer.initial(slot), np.float32) for slot in optimizer.slots
    )


def take(  # noqa: PLR0913 - all that makes one step
    optimizer: Elementwise,
    parameters: Vector,
    state: tuple[Vector, ...],
    *,
    gradient: Vector,
    decay: Vector | None = None,
    rate: float = 0.1,
    round_number: int = 1,
) -> tuple[Vector, tuple[Vector, ...]]:
    """Returns the results of one step, in fresh arrays full of NaN before."""
    into = Workspace.of(optimizer, len(parameters))
    for array in (into.parameters, *into.state, into.spare):
        array.fill(np.nan)
    optimizer.step(
        parameters,
        state,
        gradient=gradient,
        decay=decay,
        rate=rate,
        round_number=round_number,
        into=into,
    )
    return into.parameters, into.state


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize(("ours_of", "theirs_of"), PAIRS, ids=PAIR_NAMES)
def test_it_steps_as_pytorch_does(
    ours_of: Callable[[float], Elementwise], theirs_of: Theirs, weight_decay: float
) -> None:
    generator = np.random.default_rng(7)
    ours = ours_of(weight_decay)
    parameters = vector(generator)
    decayed = torch.nn.Parameter(torch.from_numpy(parameters[MASK > 0].copy()))
    exempt = torch.nn.Parameter(torch.from_numpy(parameters[MASK == 0].copy()))
    theirs = theirs_of(
        [
            {"params": [decayed], "weight_decay": weight_decay},
            {"params": [exempt], "weight_decay": 0.0},
        ],
        0.1,
    )
    state = state_of(ours, COUNT)
    decay = np.float32(weight_decay) * MASK if weight_decay else None
    for number in range(1, STEPS + 1):
        rate = 0.1 / number
        gradient = vector(generator)
        parameters, state = take(
            ours,
            parameters,
            state,
            gradient=gradient,
            decay=decay,
            rate=rate,
            round_number=number,
        )
        decayed.grad = torch.from_numpy(gradient[MASK > 0])
        exempt.grad = torch.from_numpy(gradient[MASK == 0])
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
    for mine, other in (
        (parameters[MASK > 0], decayed.detach().numpy()),
        (parameters[MASK == 0], exempt.detach().numpy()),
    ):
        np.testing.assert_allclose(mine, other, rtol=2e-6, atol=1e-6)


def test_yogi_steps_as_its_paper_says() -> None:
    generator = np.random.default_rng(11)
    yogi = Yogi(beta1=0.8, beta2=0.9, epsilon=1e-2)
    parameters = vector(generator)
    state = state_of(yogi, COUNT)
    w = parameters.astype(np.float64)
    m, v = np.zeros(COUNT), np.full(COUNT, 1e-4)
    decay = np.float32(0.01) * MASK
    for number in range(1, STEPS + 1):
        gradient = vector(generator)
        parameters, state = take(
            yogi, parameters, state, gradient=gradient, decay=decay, round_number=number
        )
        d = gradient + 0.01 * MASK * w
        m = 0.8 * m + 0.2 * d
        v = v - 0.1 * np.sign(v - d * d) * d * d
        w = w - 0.1 * m / (np.sqrt(v) + 1e-2)
    np.testing.assert_allclose(parameters, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ALL, ids=repr)
def test_no_step_needs_to_write_to_what_it_is_given(optimizer: Elementwise) -> None:
    generator = np.random.default_rng(5)
    arrays = [vector(generator) for _ in range(3)]
    state = tuple(abs(vector(generator)) for _ in optimizer.slots)
    before = [array.tobytes() for array in (*arrays, *state)]
    for array in state:
        array.flags.writeable = False
    take(optimizer, arrays[0], state, gradient=arrays[1], decay=arrays[2])
    assert [array.tobytes() for array in (*arrays, *state)] == before


@given(
    st.sampled_from(ALL),
    st.integers(0, 2**32),
    st.lists(st.integers(0, 200), max_size=6),
    st.sampled_from([0, 1]),
)
def test_any_split_into_blocks_gives_the_same_bits(
    optimizer: Elementwise, seed: int, cuts: list[int], decayed: Literal[0, 1]
) -> None:
    generator = np.random.default_rng(seed)
    count = 200
    parameters, gradient = vector(generator, count), vector(generator, count)
    decay = vector(generator, count) if decayed else None
    state = tuple(abs(vector(generator, count)) for _ in optimizer.slots)
    whole, wholes = take(optimizer, parameters, state, gradient=gradient, decay=decay)
    edges = [0, *sorted(cuts), count]
    for start, stop in itertools.pairwise(edges):
        block = slice(start, stop)
        moved, kept = take(
            optimizer,
            parameters[block],
            tuple(array[block] for array in state),
            gradient=gradient[block],
            decay=None if decay is None else decay[block],
        )
        assert moved.tobytes() == whole[block].tobytes()
        for part, all_of_it in zip(kept, wholes, strict=True):
            assert part.tobytes() == all_of_it[block].tobytes()


@pytest.mark.parametrize("optimizer", ALL, ids=repr)
def test_without_a_gradient_nothing_moves(optimizer: Elementwise) -> None:
    start = np.array([1, -2, 3], np.float32)
    moved, _ = take(
        optimizer, start, state_of(optimizer, 3), gradient=np.zeros(3, np.float32)
    )
    assert moved.tobytes() == start.tobytes()


def test_sgd_without_momentum_keeps_no_velocity() -> None:
    assert Sgd().slots == ()
    assert Sgd(momentum=0.5).slots == ("velocity",)


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_the_spread_of_yogi_is_never_negative(seed: int, rounds: int) -> None:
    generator = np.random.default_rng(seed)
    yogi = Yogi(beta2=0.5)
    parameters, state = vector(generator), state_of(yogi, COUNT)
    for number in range(1, rounds + 1):
        gradient = vector(generator) * np.float32(generator.choice([0, 1e-4, 1, 1e3]))
        parameters, state = take(
            yogi, parameters, state, gradient=gradient, round_number=number
        )
    assert (state[1] >= 0).all()
    assert np.isfinite(parameters).all()
