"""Four workers over sockets, in one loop in memory, and in a plain loop: one result.

The other convergence tests train in memory. These say why that counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.engine_in_memory import train
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import (
    CLASSES,
    FEATURES,
    Tree,
    average,
    put,
    with_quorum,
)
from tests.support.plan_tree import WORKERS as FIRST_WORKERS
from tests.support.records_in_memory import clouds
from tests.support.running import Run
from tests.support.whole_run import Scene, make_scene, task

from cloister.federation.course import course_of
from cloister.federation.layout import ModelBuffer
from cloister.federation.server import Outcome
from cloister.federation.task import LearnerSettings
from cloister.plan.plan import Plan
from cloister.storage.model_vault import open_model
from cloister.storage.records import DataSource

MORE_WORKERS = ("carol", "dan")
WORKERS = (*FIRST_WORKERS, *MORE_WORKERS)
ROUNDS = 5

Arrays = dict[str, NDArray[np.generic]]


def sync_sgd(tree: Tree) -> Tree:
    return put(tree, ("training", "rounds"), ROUNDS)


def with_quorum_of_all(tree: Tree) -> Tree:
    return with_quorum(sync_sgd(tree), len(WORKERS))


def rounded(tree: Tree) -> Tree:
    return put(sync_sgd(tree), ("training", "wire"), "bfloat16")


def fedavg(tree: Tree) -> Tree:
    return average(sync_sgd(tree))


def fedavg_of_some_rounded(tree: Tree) -> Tree:
    tree = put(average(rounded(tree)), ("rounds", "sample"), 2)
    optimizer: Tree = {"learning_rate": 0.25, "momentum": 0.9, "weight_decay": 0.01}
    put(tree, ("training", "local_optimizer"), optimizer)
    yogi: Tree = {"name": "yogi", "learning_rate": 0.1}
    return put(tree, ("training", "optimizer"), yogi)


def sources() -> dict[str, DataSource]:
    return {
        name: clouds(seed=seed, features=FEATURES, classes=CLASSES)
        for seed, name in enumerate(WORKERS, 1)
    }


async def over_sockets(scene: Scene) -> Outcome:
    nodes, data = scene.nodes(), sources()
    outcome, *_ = await asyncio.gather(
        scene.serve(nodes["aggregator"], task()),
        *(scene.work(nodes[name], task(), data[name]) for name in WORKERS),
    )
    assert outcome is not None
    return outcome


def plain_loop(plan: Plan) -> Arrays:
    """Returns what sync-sgd means, without any of the engine's arithmetic."""
    training = plan.training
    model = task().initial_model(seed=training.seed)
    out = ModelBuffer(model.layout)
    learners = [
        task().learner(
            source,
            LearnerSettings(
                party=party,
                batch_size=training.batch_size,
                seed=training.seed,
                threads=1,
                precision="float32",
            ),
        )
        for party, source in sources().items()
    ]
    weights = model.parameters.astype(np.float64)
    momentum = np.zeros_like(weights)
    decay = 0.001 * model.layout.decay_mask()
    for number in range(1, training.rounds + 1):
        gradients, statistics = [], []
        for learner in learners:
            learner.load(model)
            learner.step(number, out)
            gradients.append(out.parameters.astype(np.float64))
            statistics.append(out.statistics.copy())
        step = np.mean(gradients, axis=0) + decay * weights
        momentum = 0.5 * momentum + step
        weights -= course_of(plan).server_rate(number) * momentum
        model.parameters[:] = weights
        model.statistics[:] = np.mean(statistics, axis=0)
    return task().export(model)


@pytest.fixture
def whole(run: Run, tmp_path: Path) -> Callable[[Federation], tuple[Scene, Arrays]]:
    def carry_out(federation: Federation) -> tuple[Scene, Arrays]:
        scene = make_scene(tmp_path / "run", federation)
        run(over_sockets(scene))
        return scene, open_model(scene.model_path, identity=federation.owner).arrays

    return carry_out


@pytest.mark.parametrize(
    "change", [sync_sgd, with_quorum_of_all, rounded, fedavg, fedavg_of_some_rounded]
)
def test_the_engine_in_memory_gives_the_bits_and_sizes_of_a_run_over_sockets(
    change: Callable[[Tree], Tree],
    whole: Callable[[Federation], tuple[Scene, Arrays]],
    tmp_path: Path,
) -> None:
    federation = make_federation(
        tmp_path / "federation", change=change, more_workers=MORE_WORKERS
    )
    scene, arrays = whole(federation)
    trained = train(federation.plan, task(), sources())
    for name, array in task().export(trained.model).items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    last = scene.events("aggregator", "round")[-1]
    assert last["bytes_received"] == trained.bytes_received
    assert last["loss"] == pytest.approx(trained.losses[-1], rel=1e-12)
    [final] = [
        event
        for event in scene.events("aggregator", "evaluation")
        if event["round"] == ROUNDS
    ]
    assert final["metrics"] == trained.metrics


def test_four_workers_in_step_are_one_process_with_all_their_batches(
    whole: Callable[[Federation], tuple[Scene, Arrays]], tmp_path: Path
) -> None:
    federation = make_federation(
        tmp_path / "federation", change=sync_sgd, more_workers=MORE_WORKERS
    )
    _, arrays = whole(federation)
    for name, expected in plain_loop(federation.plan).items():
        np.testing.assert_allclose(
            arrays[name].astype(np.float64),
            expected.astype(np.float64),
            rtol=0,
            atol=1e-5,
        )
