"""What a plan may say about the rounds' work, and what is refused."""

from __future__ import annotations

import contextlib
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.plan_tree import (
    Path,
    Tree,
    Value,
    average,
    plan_tree,
    put,
    take,
    toml_of,
    with_strategy,
)

from cloister.errors import ConfigError
from cloister.plan.plan import Plan, parse_plan, plan_hash
from cloister.plan.training import CustomOptimizer, SgdOptimizer

OPTIMIZER: Path = ("training", "optimizer")
SCHEDULE: Path = ("training", "schedule")
OPTIMIZERS: dict[str, Tree] = {
    "sgd": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "adagrad": {"epsilon": 1e-10, "weight_decay": 0.0},
    "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0},
    "yogi": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-3, "weight_decay": 0.0},
    "custom": {"options": {}},
}
SCHEDULES: dict[str, Tree] = {
    "constant": {},
    "step": {"factor": 0.1},
    "cosine": {},
    "poly": {"power": 1.0, "end_fraction": 0.0},
}


def plan(tree: Tree) -> Plan:
    return parse_plan(toml_of(tree))


def refusal(tree: Tree) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        plan(tree)
    return caught.value


def optimizer(name: str, **others: Value) -> Tree:
    table: Tree = {"name": name, "learning_rate": 0.5}
    if name == "custom":
        table |= {"file": "own.py", "class": "Own"}
    return put(plan_tree(), OPTIMIZER, {**table, **others})


def schedule(name: str, **others: Value) -> Tree:
    table: Tree = {"name": name}
    if name == "step":
        table |= {"every_rounds": 5}
    return put(plan_tree(), SCHEDULE, {**table, **others})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_its_defaults_in_the_hash(name: str) -> None:
    said = plan(optimizer(name, **OPTIMIZERS[name]))
    assert plan_hash(said) == plan_hash(plan(optimizer(name)))
    form = msgspec.to_builtins(said)["training"]["optimizer"]
    assert form["name"] == name
    assert OPTIMIZERS[name].items() <= form.items()


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_its_defaults_in_the_hash(name: str) -> None:
    said = plan(schedule(name, warmup_rounds=0, **SCHEDULES[name]))
    assert plan_hash(said) == plan_hash(plan(schedule(name)))
    form = msgspec.to_builtins(said)["training"]["schedule"]
    assert form["name"] == name
    assert SCHEDULES[name].items() <= form.items()


def test_all_kinds_are_different_plans() -> None:
    trees = [*map(optimizer, OPTIMIZERS), *map(schedule, SCHEDULES)]
    assert len({plan_hash(plan(tree)) for tree in trees}) == len(trees)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("sgd", "momentum", 1.0),
        ("sgd", "nesterov", 1),
        ("adagrad", "epsilon", 0.0),
        ("adagrad", "epsilon", 1e-31),
        ("adagrad", "epsilon", 1.5),
        ("adagrad", "weight_decay", 1.0),
        ("adam", "beta1", 1.0),
        ("adam", "beta1", -0.1),
        ("adam", "beta2", 1.0),
        ("adam", "epsilon", float("nan")),
        ("yogi", "beta2", float("inf")),
        ("yogi", "learning_rate", 0),
        ("custom", "file", "../own.py"),
        ("custom", "file", "own.txt"),
        ("custom", "class", "a.b"),
        ("custom", "options", {"a": [1]}),
    ],
)
def test_an_optimizers_value_out_of_its_range_is_refused(
    name: str, key: str, value: Value
) -> None:
    error = refusal(optimizer(name, **{key: value}))
    assert error.code == "value-invalid"
    assert f"training.optimizer.{key}" in error.what


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("step", "every_rounds", 0),
        ("step", "factor", 0.0),
        ("step", "factor", 1.0),
        ("poly", "power", 0.0),
        ("poly", "power", 101),
        ("poly", "end_fraction", 1.0),
        ("poly", "end_fraction", -0.1),
    ],
)
def test_a_schedules_value_out_of_its_range_is_refused(
    name: str, key: str, value: Value
) -> None:
    error = refusal(schedule(name, **{key: value}))
    assert error.code == "value-invalid"
    assert f"training.schedule.{key}" in error.what


@pytest.mark.parametrize(
    ("name", "key", "known"),
    [
        ("sgd", "epsilon", "name, learning_rate, momentum, nesterov, weight_decay"),
        ("adagrad", "momentum", "name, learning_rate, epsilon, weight_decay"),
        ("yogi", "nesterov", "name, learning_rate, beta1, beta2, epsilon,"),
        ("custom", "weight_decay", "name, learning_rate, file, class, options"),
    ],
)
def test_a_key_of_another_optimizer_is_answered_with_its_own(
    name: str, key: str, known: str
) -> None:
    error = refusal(optimizer(name, **{key: 0.5}))
    assert error.code == "key-unknown"
    assert error.expected.startswith(f"one of {known}")


@pytest.mark.parametrize(
    "missing", [(*OPTIMIZER, "name"), (*SCHEDULE, "name"), (*OPTIMIZER, "file")]
)
def test_a_table_without_what_it_needs_is_refused(missing: Path) -> None:
    error = refusal(take(with_strategy(plan_tree()), missing))
    assert error.code == "value-invalid"
    assert f"`{missing[-1]}`" in error.what


def test_nesterovs_step_needs_a_momentum() -> None:
    assert refusal(optimizer("sgd", nesterov=True)).code == "optimizer-invalid"
    found = plan(optimizer("sgd", nesterov=True, momentum=0.5)).training.optimizer
    assert isinstance(found, SgdOptimizer)
    assert found.nesterov


def test_a_plan_may_bring_a_strategy_of_its_own() -> None:
    found = plan(optimizer("custom", options={"beta": 0.5, "on": True}))
    own = found.training.own_strategy
    assert isinstance(own, CustomOptimizer)
    assert (own.file, own.class_, own.options) == (
        "own.py",
        "Own",
        {"beta": 0.5, "on": True},
    )
    assert found.source_files == ("task.py", "own.py")
    assert plan(plan_tree()).training.own_strategy is None


def test_task_and_strategy_are_files_of_their_own() -> None:
    error = refusal(optimizer("custom", file="task.py"))
    assert (error.code, error.got) == ("optimizer-invalid", "task.py")


def test_a_round_of_fedavg_is_local_steps() -> None:
    training = plan(average(plan_tree(), local_steps=5)).training
    assert (training.mode, training.local_steps) == ("fedavg", 5)
    assert training.local_optimizer is not None
    assert training.local_optimizer.learning_rate == 0.25


LOCAL: Path = ("training", "local_optimizer")


def test_local_steps_may_be_the_tasks_own() -> None:
    tree = put(average(plan_tree()), LOCAL, {"name": "task", "learning_rate": 0.5})
    local = plan(tree).training.local_optimizer
    assert local is not None
    assert (local.name, local.learning_rate) == ("task", 0.5)


@pytest.mark.parametrize("key", ["momentum", "weight_decay"])
def test_the_tasks_own_optimizer_takes_its_settings_from_the_task(key: str) -> None:
    local: Tree = {"name": "task", "learning_rate": 0.5, key: 0.0}
    plan(put(average(plan_tree()), LOCAL, local))
    error = refusal(put(average(plan_tree()), LOCAL, {**local, key: 0.5}))
    assert error.code == "optimizer-invalid"
    assert "would be ignored" in error.what


def test_training_starts_from_the_tasks_weights_or_from_given_ones() -> None:
    assert plan(plan_tree()).training.initial is None
    given: Tree = {"file": "start.safetensors", "sha256": 64 * "9"}
    initial = plan(put(plan_tree(), ("training", "initial"), given)).training.initial
    assert initial is not None
    assert (initial.file, initial.sha256) == ("start.safetensors", 64 * "9")


@pytest.mark.parametrize("missing", ["local_steps", "local_optimizer"])
def test_fedavg_needs_to_know_its_local_steps(missing: str) -> None:
    error = refusal(take(average(plan_tree()), ("training", missing)))
    assert error.code == "local-missing"
    assert missing in error.got


@pytest.mark.parametrize(
    ("key", "value"), [("local_steps", 1), ("local_optimizer", {"learning_rate": 0.5})]
)
def test_local_steps_would_be_ignored_in_sync_sgd(key: str, value: Value) -> None:
    error = refusal(put(plan_tree(), ("training", key), value))
    assert error.code == "local-unused"
    assert key in error.got


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_warms_up_for_longer_than_the_training(name: str) -> None:
    plan(schedule(name, warmup_rounds=12))
    assert refusal(schedule(name, warmup_rounds=13)).code == "warmup-too-long"


def test_an_update_is_over_no_more_examples_than_a_message_can_say() -> None:
    def tree(batch_size: int) -> Tree:
        fedavg = average(plan_tree(), local_steps=2**30)
        return put(fedavg, ("training", "batch_size"), batch_size)

    assert plan(tree(2**10)).training.batch_size == 2**10
    error = refusal(tree(2**10 + 1))
    assert error.code == "examples-too-many"
    assert str(2**40) in error.expected


OPTIONS: list[Path] = [("task", "options"), (*OPTIMIZER, "options")]


def with_option(place: Path, value: Value) -> Tree:
    return put(with_strategy(plan_tree()), place, {"a": value})


@pytest.mark.parametrize("place", OPTIONS)
@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 1.7e308, -1.7e308])
def test_an_option_is_a_number_of_64_bits(place: Path, value: Value) -> None:
    plan_hash(plan(with_option(place, value)))


@pytest.mark.parametrize("place", OPTIONS)
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, math.nan, math.inf, -math.inf])
def test_an_option_of_more_bits_or_not_finite_is_refused(
    place: Path, value: Value
) -> None:
    error = refusal(with_option(place, value))
    assert error.code == "value-invalid"
    assert ".".join(map(str, place)) in error.what


@pytest.mark.parametrize("place", OPTIONS)
def test_an_option_with_more_digits_than_python_writes_is_refused(place: Path) -> None:
    stand_in = 123454321
    text = toml_of(with_option(place, stand_in)).decode()
    huge = text.replace(str(stand_in), "0x" + 5000 * "f").encode()
    with pytest.raises(ConfigError) as caught:
        parse_plan(huge)
    assert caught.value.code == "value-invalid"
    assert len(str(caught.value)) < 300


NUMBERS = st.floats(0, 2) | st.integers(-1, 3) | st.booleans() | st.text(max_size=5)
KEYS = st.sampled_from(
    sorted({key for table in OPTIMIZERS.values() for key in table} | {"x"})
)


@given(st.sampled_from(sorted(OPTIMIZERS)), st.dictionaries(KEYS, NUMBERS))
def test_no_optimizer_raises_anything_but_a_config_error(
    name: str, values: dict[str, Value]
) -> None:
    with contextlib.suppress(ConfigError):
        plan_hash(plan(optimizer(name, **values)))
