"""What `cloister init` orders."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.cli.commands.init import order_for
from cloister.cli.recipes import CIFAR, DIGITS, LOCAL_STEPS, Recipe
from cloister.plan.training import Mode, Wire


def recipe(
    *,
    data: Path | None = None,
    rounds: int | None = None,
    mode: Mode = "sync-sgd",
    wire: Wire = "float32",
) -> Recipe:
    return order_for(
        Path("new"),
        data=data,
        workers=("alice", "bob"),
        rounds=rounds,
        tee=None,
        mode=mode,
        wire=wire,
    ).recipe


def test_the_usual_recipe_averages_gradients_exactly() -> None:
    assert recipe() == DIGITS
    assert (DIGITS.mode, DIGITS.wire, DIGITS.local_steps) == (
        "sync-sgd",
        "float32",
        None,
    )


@pytest.mark.parametrize("data", [None, Path("cifar")])
def test_averaged_models_take_as_many_steps_in_fewer_rounds(data: Path | None) -> None:
    usual, averaged = recipe(data=data), recipe(data=data, mode="fedavg")
    assert (averaged.mode, averaged.local_steps) == ("fedavg", LOCAL_STEPS)
    steps = averaged.rounds * LOCAL_STEPS
    assert usual.rounds - LOCAL_STEPS < steps <= usual.rounds
    assert averaged.warmup_rounds <= averaged.rounds
    assert averaged.evaluate_every >= 1
    assert averaged.learning_rate == usual.learning_rate


@pytest.mark.parametrize("rounds", [1, 2, 200])
def test_rounds_are_rounds_in_every_mode(rounds: int) -> None:
    for mode in ("sync-sgd", "fedavg"):
        found = recipe(rounds=rounds, mode=mode)
        assert found.rounds == rounds
        assert found.warmup_rounds <= rounds


def test_the_shortest_recipe_has_a_round() -> None:
    averaged = CIFAR.averaged(local_steps=1000)
    assert (averaged.rounds, averaged.evaluate_every) == (1, 1)


def test_the_wire_is_as_ordered() -> None:
    assert recipe(wire="bfloat16").wire == "bfloat16"
