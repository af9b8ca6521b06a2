"""The 24 numbers of the article whose secure averaging is superseded.

PySyft's toy data and model, in a Graphene enclave: two owners outside, who take five
local steps on two records each, and ten means of their models. The article prints each
owner's loss before the last step of each round, the four predictions, and the loss over
all records in the end. Its first weights are random and not printed; those below are
what reproduces its output.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from examples.secure_averaging.task import SecureAveraging
from numpy.typing import NDArray
from tests.support.engine_in_memory import Trained, train
from tests.support.plan_tree import Tree, by_identity, plan_tree, put, toml_of
from tests.support.records_in_memory import MemoryRecords, MemorySource
from typing_extensions import override

from cloister.federation.layout import ModelBuffer
from cloister.federation.task import LearnerSettings, StepReport
from cloister.plan.plan import Plan, parse_plan
from cloister.storage.records import Batch, DataSource
from cloister.workloads.torch_learner import TorchLearner

ROUNDS, LOCAL_STEPS = 10, 5
INITIAL = {
    "weight": np.array([[0.132165, -0.147560]], np.float32),
    "bias": np.array([0.527453], np.float32),
}
INPUTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
TARGETS = np.array([[0], [0], [1], [1]], np.float32)
BOB = [0.0338, 0.0230, 0.0161, 0.0115, 0.0084, 0.0062, 0.0046, 0.0034, 0.0026, 0.0020]
ALICE = [0.0005, 0.0001, 1.9244e-05, 1.9158e-07, 1.0417e-05]
ALICE += [2.2136e-05, 2.8727e-05, 3.0386e-05, 2.8821e-05, 2.5603e-05]
PREDICTIONS = (0.1221, 0.0984, 0.8764, 0.8526)
FINAL_LOSS = 0.0616


class Recorded(TorchLearner):
    """An owner's learner, and the loss of each of its steps, which the owner sees."""

    losses: list[float]

    @override
    def step(self, round_number: int, out: ModelBuffer) -> StepReport:
        report = super().step(round_number, out)
        self.losses.append(report.loss_sum / report.examples)
        return report


class Watched(SecureAveraging):
    """The example's task at two owners, each of whom keeps the losses of its steps."""

    def __init__(self) -> None:
        super().__init__(local_steps=LOCAL_STEPS)
        self.losses: defaultdict[str, list[float]] = defaultdict(list)

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> Recorded:
        learner = Recorded(self, source, settings)
        learner.losses = self.losses[settings.party]
        return learner

    def printed(self, party: str) -> list[float]:
        """Returns an owner's loss before the last step of each round."""
        return self.losses[party][LOCAL_STEPS - 1 :: LOCAL_STEPS]


@pytest.fixture(scope="module")
def task() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def trained(task: Watched) -> Trained:
    return train(
        plan(), task, {"bob": rows(0, 1), "alice": rows(2, 3)}, initial=INITIAL
    )


def plan() -> Plan:
    tree = by_identity(plan_tree(), "alice", "bob")
    training: Tree = {
        "mode": "fedavg",
        "rounds": ROUNDS,
        "local_steps": LOCAL_STEPS,
        "batch_size": 2,
        "seed": 7,
        "local_optimizer": {"learning_rate": 0.1},
        "optimizer": {"name": "sgd", "learning_rate": 1.0},
        "schedule": {"name": "constant"},
        "initial": {"file": "start.safetensors", "sha256": 64 * "0"},
    }
    return parse_plan(toml_of(put(tree, ("training",), training)))


def rows(*which: int) -> MemorySource:
    columns: Batch = {"inputs": INPUTS[list(which)], "target": TARGETS[list(which)]}
    records = MemoryRecords(columns)
    return MemorySource({"train": records, "held-out": records})


def predictions(trained: Trained, task: SecureAveraging) -> NDArray[np.float64]:
    arrays = task.export(trained.model)
    weight, bias = (np.asarray(arrays[name], np.float64) for name in INITIAL)
    return (INPUTS @ weight.T + bias)[:, 0]


def test_each_owners_losses_are_those_that_the_article_prints(
    trained: Trained, task: Watched
) -> None:
    assert len(trained.losses) == ROUNDS
    np.testing.assert_allclose(task.printed("bob"), BOB, rtol=0, atol=1e-4)
    np.testing.assert_allclose(task.printed("alice"), ALICE, rtol=0, atol=1e-4)
    # Of the small ones it prints five digits.
    np.testing.assert_allclose(task.printed("alice")[2:], ALICE[2:], rtol=0.02)


def test_the_predictions_are_those_that_the_article_prints(
    trained: Trained, task: Watched
) -> None:
    found = predictions(trained, task)
    np.testing.assert_allclose(found, PREDICTIONS, rtol=0, atol=1e-4)


def test_the_loss_over_all_records_is_what_the_article_prints(
    trained: Trained, task: Watched
) -> None:
    errors = predictions(trained, task) - TARGETS[:, 0]
    assert float(np.sum(errors**2)) == pytest.approx(FINAL_LOSS, abs=1e-4)
    # As the federation says it, which takes means.
    assert 4 * trained.metrics["loss"] == pytest.approx(FINAL_LOSS, abs=1e-4)
