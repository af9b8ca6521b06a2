from __future__ import annotations

import pytest
from examples.own_strategy.strategy import Lamb
from tests.support.plan_tree import (
    Tree,
    Value,
    add_worker,
    average,
    plan_tree,
    put,
    toml_of,
    with_quorum,
)

from cloister.federation.course import Course, course_of, schedule_of
from cloister.federation.own_strategy import OwnStrategy
from cloister.federation.rounds.machine import RunRules
from cloister.federation.strategies.optimizers import (
    Adagrad,
    Adam,
    Elementwise,
    Sgd,
    Yogi,
)
from cloister.federation.strategies.schedules import (
    Constant,
    Cosine,
    LearningRate,
    Poly,
    Schedule,
    Step,
)
from cloister.plan.plan import Plan, parse_plan

CUSTOM: dict[str, Value] = {
    "name": "custom",
    "learning_rate": 0.5,
    "file": "strategy.py",
    "class": "Lamb",
}


def plan_of(tree: Tree) -> Plan:
    return parse_plan(toml_of(tree))


def with_training(key: str, value: Value) -> Plan:
    return plan_of(put(plan_tree(), ("training", key), value))


def test_a_course_says_what_its_plan_says() -> None:
    assert course_of(plan_of(plan_tree())) == Course(
        run_id="blobs/a",
        parties=("alice", "bob"),
        seats=2,
        quorum=None,
        deadline_seconds=None,
        rounds=12,
        evaluate_every=4,
        examples=16,
        optimizer=Sgd(momentum=0.5, weight_decay=0.001),
        rate=LearningRate(peak=0.5, schedule=Cosine(rounds=12, warmup_rounds=2)),
        seed=7,
        wire="float32",
    )


def test_a_quorum_and_a_sample_are_rules_of_the_machine() -> None:
    tree = average(add_worker(add_worker(plan_tree(), "carol"), "dave"))
    course = course_of(plan_of(with_quorum(tree, 2, sample=3)))
    assert course.deadline_seconds is not None
    assert course.rules == RunRules(
        parties=("alice", "bob", "carol", "dave"),
        seats=3,
        quorum=2,
        rounds=12,
        seed=7,
    )


def test_updates_come_at_once_only_where_no_party_can_be_without_a_place() -> None:
    """With two seats of three parties a third may get one while both still send."""
    assert course_of(plan_of(plan_tree())).at_once
    tree = average(add_worker(plan_tree(), "carol"))
    course = course_of(plan_of(with_quorum(tree, 2, sample=2)))
    assert course.seats == 2
    assert not course.at_once


def test_in_sync_sgd_the_schedule_is_the_servers() -> None:
    course = course_of(plan_of(plan_tree()))
    assert [course.server_rate(n) for n in (1, 2, 3)] == [0.25, 0.5, 0.5]
    assert course.server_rate(8) == course.rate.at(8) < 0.5


def test_in_fedavg_it_is_the_workers_and_the_servers_rate_is_constant() -> None:
    course = course_of(plan_of(average(plan_tree(), local_steps=3)))
    assert {course.server_rate(n) for n in range(1, 13)} == {1.0}
    assert [course.rate.at(n) for n in (1, 2, 3)] == [0.125, 0.25, 0.25]
    assert course.examples == 48


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"name": "sgd", "momentum": 0.5, "nesterov": True},
            Sgd(momentum=0.5, nesterov=True),
        ),
        (
            {"name": "adagrad", "epsilon": 0.5, "weight_decay": 0.25},
            Adagrad(epsilon=0.5, weight_decay=0.25),
        ),
        (
            {"name": "adam", "beta1": 0.5, "beta2": 0.25, "weight_decay": 0.125},
            Adam(beta1=0.5, beta2=0.25, weight_decay=0.125),
        ),
        ({"name": "adam", "epsilon": 0.5}, Adam(epsilon=0.5)),
        (
            {"name": "yogi", "beta1": 0.5, "beta2": 0.25, "epsilon": 0.125},
            Yogi(beta1=0.5, beta2=0.25, epsilon=0.125),
        ),
        ({"name": "yogi", "weight_decay": 0.5}, Yogi(weight_decay=0.5)),
    ],
    ids=repr,
)
def test_every_optimizer_of_a_plan_is_the_one_of_its_name(
    value: dict[str, Value], expected: Elementwise
) -> None:
    plan = with_training("optimizer", {"learning_rate": 0.5, **value})
    assert course_of(plan).optimizer == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"name": "constant", "warmup_rounds": 3}, Constant(warmup_rounds=3)),
        (
            {"name": "step", "every_rounds": 5, "factor": 0.5, "warmup_rounds": 1},
            Step(every_rounds=5, ratio=0.5, warmup_rounds=1),
        ),
        ({"name": "cosine"}, Cosine(rounds=12)),
        (
            {"name": "poly", "power": 2.0, "end_fraction": 0.5, "warmup_rounds": 1},
            Poly(rounds=12, power=2.0, end_fraction=0.5, warmup_rounds=1),
        ),
    ],
    ids=repr,
)
def test_every_schedule_of_a_plan_is_the_one_of_its_name(
    value: dict[str, Value], expected: Schedule
) -> None:
    assert schedule_of(with_training("schedule", value).training) == expected


def test_a_strategy_of_the_plans_own_is_guarded() -> None:
    lamb = Lamb()
    course = course_of(with_training("optimizer", dict(CUSTOM)), own_strategy=lamb)
    assert course.optimizer == OwnStrategy(
        strategy=lamb, filename="strategy.py", simulated=True
    )


def test_a_strategy_is_given_exactly_where_the_plan_has_one() -> None:
    with pytest.raises(RuntimeError):
        course_of(with_training("optimizer", dict(CUSTOM)))
    with pytest.raises(RuntimeError):
        course_of(plan_of(plan_tree()), own_strategy=Lamb())
