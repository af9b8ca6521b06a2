"""How a plan trains, as `cloister plan show` says it."""

from __future__ import annotations

import pytest
from tests.support.plan_tree import (
    Tree,
    add_worker,
    average,
    plan_tree,
    put,
    take,
    toml_of,
    with_quorum,
    with_strategy,
)

from cloister.cli.plan_words import describe
from cloister.cli.training_words import training_in_words
from cloister.plan.plan import parse_plan


def words(tree: Tree) -> str:
    return "\n".join(training_in_words(parse_plan(toml_of(tree))))


def whole(tree: Tree) -> str:
    return "\n".join(describe(parse_plan(toml_of(tree))))


def four() -> Tree:
    return average(add_worker(add_worker(plan_tree(), "carol"), "dave"))


def test_a_plain_plan_is_rounds_of_sync_sgd_with_everybody() -> None:
    said = words(plan_tree())
    assert "12 rounds of synchronous SGD (sync-sgd), 16 examples a worker" in said
    assert "All 2 workers have a seat in every round" in said
    assert "it waits for each of them" in said
    assert "Every mean is of 2 updates at least." in said
    assert "SGD, momentum 0.5, weight decay 0.001, rate 0.5" in said
    assert "falling along half a cosine after 2 rounds of warm-up" in said
    assert "travel exactly" in said
    assert "left out" not in said
    assert "CAUTION" not in said


def test_fedavg_says_what_a_worker_does_and_with_what() -> None:
    said = words(average(plan_tree(), local_steps=8))
    assert "12 rounds of federated averaging (fedavg)" in said
    assert "a worker takes 8 local steps\nof 16 examples" in said
    assert "A worker steps with SGD, momentum 0, weight decay 0, rate 0.25" in said
    assert "steps with SGD, momentum 0, weight decay 0, rate 1, the same" in said


def test_local_steps_of_the_tasks_own_name_nothing_that_the_plan_does_not_say() -> None:
    local: Tree = {"name": "task", "learning_rate": 0.5}
    said = words(put(average(plan_tree()), ("training", "local_optimizer"), local))
    assert "A worker steps with the task's own optimiser, new in every round" in said
    assert "optimiser, new in every round, rate 0.5, falling" in said


def test_given_weights_are_said_with_their_digest() -> None:
    assert "starts from" not in words(plan_tree())
    initial: Tree = {"file": "start.safetensors", "sha256": 64 * "9"}
    said = words(put(plan_tree(), ("training", "initial"), initial))
    assert "It starts from the weights in start.safetensors, whose SHA-256" in said
    assert f"  {64 * '9'}." in said


def test_drawn_workers_are_said_with_who_can_say_which() -> None:
    said = words(put(four(), ("rounds", "sample"), 3))
    assert "3 of 4 workers have a seat in each round" in said
    assert "it waits for each of them" in said
    assert "drawn by the seed: anybody can say who" in said
    assert "Every mean is of 3 updates at least." in said


def test_a_quorum_says_who_may_be_left_out_and_what_depends_on_it() -> None:
    said = words(with_quorum(four(), 3, deadline_seconds=90))
    assert "All 4 workers have a seat in every round" in said
    assert "After 90 seconds a round ends with those who came in time" in said
    assert "if they are 3 at least; the others are left out" in said
    assert "bits of the result depend on who came in time" in said
    assert "host can hold back whom it likes" in said
    assert "Every mean is of 3 updates at least." in said
    assert "drawn" not in said
    said = words(with_quorum(four(), 2, sample=3))
    assert "drawn by the seed among those who are there" in said
    assert "Every mean is of 2 updates at least." in said


def test_a_round_of_two_tells_each_of_the_other() -> None:
    assert "each learns the other's mean gradient" in whole(plan_tree())
    assert "each learns the other's update" in whole(with_quorum(four(), 2))
    assert "each learns" not in whole(with_quorum(four(), 3))


def test_a_single_worker_is_said_openly() -> None:
    tree = take(plan_tree(), ("party", 2))
    assert "every mean is of its update alone" in words(tree)


def test_the_wire_says_what_it_costs() -> None:
    said = words(put(plan_tree(), ("training", "wire"), "bfloat16"))
    assert "rounded to bfloat16: half the bytes, and another result" in said


def test_a_strategy_of_its_own_is_to_be_read_before_signing() -> None:
    tree = put(with_strategy(plan_tree()), ("training", "optimizer", "options"), {})
    said = words(tree)
    assert "CAUTION: the strategy is the plan's own: Own in strategy.py" in said
    assert "read it, as the task, before you sign" in said
    assert "with the plan's own strategy Own, rate 0.5" in said


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (
            {"name": "sgd", "momentum": 0.5, "nesterov": True},
            "SGD, momentum 0.5 (Nesterov's), weight decay 0, rate 0.5",
        ),
        ({"name": "adagrad"}, "Adagrad, epsilon 1e-10, weight decay 0, rate 0.5"),
        ({"name": "adam"}, "Adam, betas 0.9 and 0.999, epsilon 1e-08, weight"),
        ({"name": "yogi"}, "Yogi, betas 0.9 and 0.999, epsilon 0.001, weight"),
    ],
)
def test_every_optimizer_has_words(optimizer: Tree, said: str) -> None:
    tree = put(
        plan_tree(), ("training", "optimizer"), {**optimizer, "learning_rate": 0.5}
    )
    assert said in words(tree)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"name": "constant"}, "rate 0.5, the same in every round."),
        ({"name": "step", "every_rounds": 5}, "times 0.1 every 5 rounds."),
        ({"name": "cosine"}, "falling along half a cosine."),
        (
            {"name": "poly", "warmup_rounds": 3},
            "falling to 0 of it along a curve of the power 1 after 3 rounds of",
        ),
    ],
)
def test_every_schedule_has_words(schedule: Tree, said: str) -> None:
    assert said in words(put(plan_tree(), ("training", "schedule"), schedule))
