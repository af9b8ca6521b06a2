"""One worker seals the network to the plan's recipients, before the run is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from examples.softmax.task import Softmax
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import CLASSES, FEATURES, put
from tests.support.predicting_task import Predicting, PredictingSoftmax, graph_of
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run
from tests.support.whole_run import make_scene, sources, whole_run
from typing_extensions import override

from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.federation.graph_sealing import GraphSealing
from cloister.federation.task import LearnerSettings, Task
from cloister.federation.trainer import Trainer
from cloister.storage.age_files import open_bytes
from cloister.storage.model_vault import open_model
from cloister.storage.records import DataSource

TASK = Predicting(FEATURES, CLASSES)
Seal = Callable[..., RecordedLog]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(
        tmp_path_factory.mktemp("graph"),
        change=lambda tree: put(tree, ("model", "graph"), "alice"),
        recipients=("rita",),
    )


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as one:
        yield one


@pytest.fixture
def seal(federation: Federation, executor: ThreadPoolExecutor, run: Run) -> Seal:
    """Rehearses and seals as a party's worker does, with the untrained model."""

    def act(path: Path, *, party: str = "alice", task: Task = TASK) -> RecordedLog:
        log = RecordedLog()

        async def story() -> None:
            node = federation.node(party)
            trainer = Trainer(node, task, executor=executor, mirror=None, former=None)
            await trainer.prepare(sources()[party])
            graph = GraphSealing(node, trainer, path=path, log=log.logger())
            await graph.rehearse()
            assert log.events == []
            await graph.seal()

        run(story())
        return log

    return act


def refusal(seal: Seal, path: Path, task: Task = TASK) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        seal(path, task=task)
    return caught.value


def test_a_run_leaves_values_from_the_server_and_the_network_from_a_worker(
    federation: Federation, tmp_path: Path, run: Run
) -> None:
    scene = make_scene(tmp_path / "run", federation)
    run(whole_run(scene, tasks={"alice": TASK, "bob": TASK}))
    (sealed,) = scene.events("alice", "graph-sealed")
    assert [event["event"] for event in scene.events("alice")][-1] == "finished"
    assert scene.events("bob", "graph-sealed") == []
    assert scene.graph_path.stat().st_size == sealed["size_bytes"]
    model = TASK.load_exported(
        open_model(scene.model_path, identity=federation.owner).arrays
    )
    for identity in (federation.owner, federation.vaults["rita"]):
        opened = open_bytes(scene.graph_path, identity=identity)
        assert opened.content == graph_of(model)
        assert opened.sha256 == sealed["sha256"]
    assert b"softmax of a line" not in scene.graph_path.read_bytes()


def test_the_worker_that_the_plan_names_seals_and_nobody_else(
    seal: Seal, tmp_path: Path
) -> None:
    assert seal(tmp_path / "bob", party="bob").events == []
    (event,) = seal(tmp_path / "alice").events
    assert event["event"] == "graph-sealed"
    assert [path.name for path in tmp_path.iterdir()] == ["alice"]


def test_a_task_without_a_graph_is_told_before_it_trains(
    federation: Federation, tmp_path: Path, run: Run
) -> None:
    """Nobody else is there: not even a server to train with."""
    scene = make_scene(tmp_path / "run", federation)
    with pytest.raises(ConfigError) as caught:
        run(
            scene.work(
                scene.node("alice"), Softmax(FEATURES, CLASSES), sources()["alice"]
            )
        )
    assert caught.value.code == "task-graph"
    assert scene.files() == ["logs/alice.jsonl"]


def test_a_graph_that_fails_is_the_tasks_failure(seal: Seal, tmp_path: Path) -> None:
    class Learner(PredictingSoftmax):
        @override
        def graph(self) -> bytes:
            raise ValueError("no such operator")

    class Failing(Predicting):
        @override
        def learner(
            self, source: DataSource, settings: LearnerSettings
        ) -> PredictingSoftmax:
            return Learner(self, source, settings)

    error = refusal(seal, tmp_path / "graph", Failing(FEATURES, CLASSES))
    assert error.code == "task-failed"
    assert "writing the network down" in error.what
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_cannot_be_written_leaves_nothing(
    seal: Seal, tmp_path: Path
) -> None:
    (tmp_path / "graph" / "full").mkdir(parents=True)
    error = refusal(seal, tmp_path / "graph")
    assert isinstance(error, StorageError)
    assert error.code == "model-unwritable"
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]
