"""All that a run leaves behind is looked through: nothing in it is of one party.

Every worker here says what it computes, and that is searched for: in all nodes' logs,
the audit log and the sealed model.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from examples.softmax.task import Softmax, SoftmaxLearner
from tests.support.canaries import Canaries
from tests.support.federation_in_memory import make_federation
from tests.support.plan_tree import CLASSES, FEATURES, Tree, put
from tests.support.running import Run
from tests.support.single_updates import plant_number, plant_values
from tests.support.whole_run import make_scene, sources, whole_run
from typing_extensions import override

from cloister.cli.output import error_object
from cloister.cli.run_view import RunView
from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer
from cloister.federation.own_strategy import OwnStrategy
from cloister.federation.strategies.strategy import Arrays, State
from cloister.federation.task import Evaluation, LearnerSettings, StepReport
from cloister.storage.model_vault import open_model
from cloister.storage.records import DataSource

LOSS = 0.7390851332151607
METRIC = 0.5671432904097838


class Observed(Softmax):
    """The plan's task; what one worker sends is looked for from then on."""

    def __init__(self, canaries: Canaries, party: str) -> None:
        super().__init__(FEATURES, CLASSES)
        self._canaries = canaries
        self._party = party

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> SoftmaxLearner:
        canaries, party = self._canaries, self._party

        class Learner(SoftmaxLearner):
            @override
            def step(self, round_number: int, out: ModelBuffer) -> StepReport:
                report = super().step(round_number, out)
                name = f"{party} in round {round_number}"
                plant_values(canaries, name, out)
                plant_number(canaries, name, report.loss_sum)
                return report

            @override
            def evaluate(self) -> Evaluation:
                found = super().evaluate()
                plant_number(canaries, f"{party}'s metric", found.sums["loss"])
                return found

        return Learner(self, source, settings)


def short(tree: Tree) -> Tree:
    put(tree, ("training", "rounds"), 3)
    return put(tree, ("rounds", "evaluate_every"), 1)


def test_a_whole_run_leaves_no_update_loss_or_metric_in_any_file(
    run: Run, tmp_path: Path
) -> None:
    """All nodes' logs, the audit log and the sealed model lie in one directory."""
    federation, canaries = make_federation(tmp_path / "keys", change=short), Canaries()
    scene = make_scene(tmp_path / "run", federation)
    run(
        whole_run(
            scene, tasks={name: Observed(canaries, name) for name in ("alice", "bob")}
        )
    )
    assert len(canaries.names()) == 2 * (3 + 1)
    assert {"audit.jsonl", "model.safetensors.age"} < set(scene.files())
    assert canaries.found_below(tmp_path) == {}
    # What there is instead: means.
    lines = scene.events("aggregator", "round")
    assert all(isinstance(line["loss"], float) for line in lines)
    assert len(scene.events("aggregator", "evaluation")) == 3


def alone(tree: Tree) -> Tree:
    """Leaves alice as the only worker."""
    parties = tree["party"]
    assert isinstance(parties, list)
    tree["party"] = [p for p in parties if isinstance(p, dict) and p["name"] != "bob"]
    put(tree, ("rounds", "evaluate_every"), 1)
    return put(tree, ("training", "rounds"), 3)


class Told(Softmax):
    """A task whose loss and metrics are looked for."""

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> SoftmaxLearner:
        class Learner(SoftmaxLearner):
            @override
            def step(self, round_number: int, out: ModelBuffer) -> StepReport:
                report = super().step(round_number, out)
                return StepReport(examples=report.examples, loss_sum=LOSS)

            @override
            def evaluate(self) -> Evaluation:
                return Evaluation(examples=1, sums={"accuracy": METRIC})

        return Learner(self, source, settings)


def test_a_single_worker_has_its_loss_and_metrics_for_itself(
    run: Run, tmp_path: Path
) -> None:
    """Not in logs, not on the screen, not in the sealed model, not in the audit."""
    federation = make_federation(tmp_path / "keys", change=alone)
    scene, canaries = make_scene(tmp_path / "run", federation), Canaries()
    examples = federation.plan.training.batch_size
    for name, number in {"loss": LOSS, "mean": LOSS / examples, "m": METRIC}.items():
        plant_number(canaries, name, number)

    async def story() -> None:
        nodes, task = scene.nodes(), Told(FEATURES, CLASSES)
        outcome, _ = await asyncio.gather(
            scene.serve(nodes["aggregator"], task),
            scene.work(nodes["alice"], task, sources()["alice"]),
        )
        assert outcome.metrics == {}
        assert canaries.found_in(msgspec.json.encode(outcome.metrics)) == set()

    run(story())
    assert canaries.found_below(tmp_path) == {}
    lines = scene.events("aggregator", "round")
    assert [line["loss"] for line in lines] == [None] * 3
    assert all(
        line["metrics"] == {} for line in scene.events("aggregator", "evaluation")
    )
    view = RunView(federation.plan)
    for event in scene.events("aggregator"):
        view.take(event)
        assert "loss" not in view.line()
        assert "accuracy" not in view.line()
    opened = open_model(scene.model_path, identity=federation.owner)
    assert not [key for key in opened.metadata if key.startswith("metric.")]


class Talkative:
    """A strategy that fails, and says what it saw."""

    def initial(self, parameters: Arrays) -> State:
        del parameters
        return {}

    def step(
        self,
        parameters: Arrays,
        state: State,
        *,
        mean: Arrays,
        rate: float,
        round_number: int,
    ) -> tuple[Arrays, State]:
        del parameters, state
        raise ValueError(f"{mean['weights'].tobytes()!r} in {round_number}: {rate}")


def test_a_strategy_that_fails_quotes_no_mean_but_in_a_simulation() -> None:
    canaries = Canaries()
    seen = np.random.default_rng(1).normal(size=12).astype(np.float32)
    canaries.plant("mean", seen.tobytes())
    for simulated, found in ((True, {"mean"}), (False, set[str]())):
        own = OwnStrategy(strategy=Talkative(), filename="s.py", simulated=simulated)
        with pytest.raises(ConfigError) as caught:
            own.step({}, {}, mean={"weights": seen}, rate=1.0, round_number=3)
        assert caught.value.code == "strategy-failed"
        shown = json.dumps(error_object(caught.value)) + str(caught.value)
        assert canaries.found_in(shown) == found
