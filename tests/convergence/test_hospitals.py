"""Three hospitals with different patients: together they do better than any alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tests.support.engine_in_memory import Trained, train
from tests.support.plan_tree import WORKERS, Tree, add_worker, plan_tree, put, toml_of
from tests.support.records_in_memory import MemoryRecords, MemorySource

from cloister.plan.plan import parse_plan
from cloister.storage.records import Batch, DataSource, SplitName
from cloister.workloads.breast_cancer import CLASSES, FEATURES, deal_breast_cancer
from cloister.workloads.tabular import TabularClassification

HOSPITALS = ("north", "south", "west")
SEEDS = (1, 2, 3)


def trained(
    splits: Mapping[str, Mapping[SplitName, Batch]], *, hidden: int, seed: int
) -> Trained:
    """Returns what the hospitals in `splits` reach; each alone takes as many steps."""
    tree = plan_tree()
    parties = tree["party"]
    assert isinstance(parties, list)
    del parties[1 : 1 + len(WORKERS)]
    for name in splits:
        add_worker(tree, name)
    training: Tree = {
        "mode": "fedavg",
        "rounds": 30,
        "local_steps": 5,
        "batch_size": 16,
        "seed": seed,
        "local_optimizer": {"learning_rate": 0.3},
        "optimizer": {"name": "sgd", "learning_rate": 1.0},
        "schedule": {"name": "constant"},
    }
    plan = parse_plan(toml_of(put(tree, ("training",), training)))
    sources: dict[str, DataSource] = {
        name: MemorySource({split: MemoryRecords(b) for split, b in its.items()})
        for name, its in splits.items()
    }
    task = TabularClassification(features=FEATURES, classes=CLASSES, hidden=hidden)
    return train(plan, task, sources)


def together_and_alone(*, hidden: int, seed: int) -> tuple[Trained, list[Trained]]:
    """Returns the federation's result and each hospital's own, on the same rows."""
    dealt = deal_breast_cancer(HOSPITALS, seed=seed)
    splits = {name: records.splits for name, records in dealt.items()}
    held_out = {
        field: np.concatenate([its["held-out"][field] for its in splits.values()])
        for field in ("features", "label")
    }
    alone = [
        trained(
            {name: {"train": its["train"], "held-out": held_out}},
            hidden=hidden,
            seed=seed,
        )
        for name, its in splits.items()
    ]
    return trained(splits, hidden=hidden, seed=seed), alone


def test_logistic_regression_of_all_beats_each_hospital_alone() -> None:
    for seed in SEEDS:
        together, alone = together_and_alone(hidden=0, seed=seed)
        assert together.accuracy > max(it.accuracy for it in alone)
        assert together.accuracy > 0.95


def test_a_network_of_all_beats_each_hospital_alone() -> None:
    """By its loss, each time; by accuracy over the seeds, for 142 rows are few."""
    results = [together_and_alone(hidden=16, seed=seed) for seed in SEEDS]
    for together, alone in results:
        assert together.metrics["loss"] < min(it.metrics["loss"] for it in alone)
    for hospital in range(len(HOSPITALS)):
        own = np.mean([alone[hospital].accuracy for _, alone in results])
        assert np.mean([together.accuracy for together, _ in results]) > own
