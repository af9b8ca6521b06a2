"""What `cloister init` orders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloister.cli.commands.init import order_for
from cloister.cli.recipe_data import deal_cifar, deal_digits, deal_mnist
from cloister.cli.recipes import CIFAR, DIGITS, LOCAL_STEPS, RECIPES, Recipe
from cloister.errors import ConfigError
from cloister.federation.task_loading import load_task, read_task_source
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


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipes_task_is_one_with_its_options(name: str) -> None:
    found = order_for(Path("new"), data=None, name=name)
    recipe = found.recipe
    task = load_task(
        read_task_source(recipe.task),
        filename=recipe.task.name,
        class_name=recipe.task_class,
        options=recipe.options,
        simulated=True,
    )
    assert task.schema().record_bytes
    assert recipe.name == name
    assert [worker for worker, _ in found.workers] == list(recipe.workers)


def test_bundled_data_goes_with_the_tasks_that_it_is_for() -> None:
    for name in ("digits", "breast-cancer"):
        found = RECIPES[name]
        for stream in found.deal(None, found.workers, 7).values():
            task = load_task(
                read_task_source(found.task),
                filename=found.task.name,
                class_name=found.task_class,
                options=found.options,
                simulated=True,
            )
            assert stream.schema == task.schema()


def test_a_source_of_bundled_data_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        deal_digits(Path("cifar"), ["alice"], 7)
    assert caught.value.code == "data-unused"


@pytest.mark.parametrize("source", [None, Path("nowhere")])
def test_data_that_is_not_there_is_refused(source: Path | None) -> None:
    for deal in (deal_cifar, deal_mnist):
        with pytest.raises(ConfigError) as caught:
            deal(source, ["alice"], 7)
        assert caught.value.code == "data-missing"


def test_of_a_single_pair_of_mnist_files_the_last_fifth_is_held_out(
    tmp_path: Path,
) -> None:
    labels, images = np.zeros(10, np.uint8), np.zeros((10, 28, 28), np.uint8)
    for kind, array in (("labels", labels), ("images", images)):
        header = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes()
        name = f"t10k-{kind}-idx{array.ndim}-ubyte"
        (tmp_path / name).write_bytes(header + array.tobytes())
    dealt = deal_mnist(tmp_path, ["alice", "bob"], 7)
    for stream in dealt.values():
        sizes = {chunk.split: len(chunk) for chunk in stream.chunks()}
        assert sizes == {"train": 4, "held-out": 1}
