"""A server dies in the middle of a run, and the next one goes on to the very bits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.dying_server import Fate, Fates, Point
from tests.support.engine_in_memory import ServerInMemory, WorkerInMemory, train
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import WORKERS, Tree, average, put, with_quorum
from tests.support.run_audit import entries_of, links_of
from tests.support.running import Run
from tests.support.whole_run import Scene, make_scene, sources, task

from cloister.federation import server, state
from cloister.federation.audit_records import RoundCompleted, ServerIntroduced
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors
from cloister.federation.course import Course, course_of
from cloister.federation.layout import ModelBuffer
from cloister.federation.starting_model import starting_model
from cloister.plan.plan import Plan, plan_hash
from cloister.storage.model_vault import open_model

THREE = (*WORKERS, "carol")
ROUNDS = 6


def with_momentum(tree: Tree) -> Tree:
    put(tree, ("training", "rounds"), ROUNDS)
    optimizer: Tree = {"name": "sgd", "learning_rate": 0.5, "momentum": 0.9}
    return put(tree, ("training", "optimizer"), optimizer)


def averaging_with_adam(tree: Tree) -> Tree:
    tree = average(put(tree, ("training", "rounds"), ROUNDS))
    adam: Tree = {"name": "adam", "learning_rate": 0.1}
    return put(tree, ("training", "optimizer"), adam)


@pytest.fixture(scope="module")
def sgd(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tmp_path_factory.mktemp("sgd"), change=with_momentum)


@pytest.fixture(scope="module")
def averaging(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(
        tmp_path_factory.mktemp("averaging"), change=averaging_with_adam
    )


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Three workers, two of whom are enough."""
    return make_federation(
        tmp_path_factory.mktemp("some"),
        more_workers=("carol",),
        change=lambda tree: with_quorum(with_momentum(tree), 2, deadline_seconds=1),
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has deadlines pass sooner than any plan can say."""

    def quick_course(plan: Plan, **more: None) -> Course:
        return replace(course_of(plan, **more), deadline_seconds=0.2)

    monkeypatch.setattr(server, "course_of", quick_course)


@pytest.fixture
def fates(monkeypatch: pytest.MonkeyPatch) -> Fates:
    return Fates(monkeypatch)


def fates_of(*points: Point, first: int = 1) -> list[Fate]:
    """Returns one death in each round."""
    return [
        Fate(point=point, round=number) for number, point in enumerate(points, first)
    ]


def assert_model(scene: Scene, federation: Federation, model: ModelBuffer) -> None:
    arrays = open_model(scene.model_path, identity=federation.owner).arrays
    for name, expected in task().export(model).items():
        np.testing.assert_array_equal(arrays[name], expected)


def assert_same_bits(scene: Scene, federation: Federation) -> None:
    """The model is that of a run in which nobody died."""
    quiet = train(federation.plan, task(), sources())
    assert_model(scene, federation, quiet.model)


def trained_by(plan: Plan, parties: Sequence[list[str]]) -> ModelBuffer:
    """Returns the model that so many rounds lead to, each made of its parties."""
    server = ServerInMemory(course_of(plan), starting_model(plan, task(), None))
    data = sources(THREE)
    workers = {
        name: WorkerInMemory(plan, task(), party=name, source=data[name])
        for name in THREE
    }
    for number, names in enumerate(parties, 1):
        model, updates = server.publish(), []
        for name in names:
            workers[name].receive(model)
            updates.append(server.receive(workers[name].update(number)[1]))
        for update in updates[:-1]:
            server.add(update)
        server.step(number, updates[-1])
    return server.model


def participants(scene: Scene) -> list[list[str]]:
    """Returns who contributed to each round that was recorded, in order."""
    rounds = [
        it for it in entries_of(scene.directory) if isinstance(it, RoundCompleted)
    ]
    return [[by.party for by in it.participants] for it in rounds]


def assert_log_holds(scene: Scene, fates: Fates, *, servers: int) -> list[int]:
    """Auditors take the log; returns the rounds that were recorded, in order."""
    plan = scene.custodians.plan
    report = verify_audit(
        links_of(scene.directory),
        anchors=Anchors(plan_hash=plan_hash(plan)),
        heads=[*fates.heads, *scene.heads()],
    )
    assert len(report.servers) == servers
    assert report.completed == plan.training.rounds
    assert report.seal is not None
    entries = entries_of(scene.directory)
    return [it.round for it in entries if isinstance(it, RoundCompleted)]


def begun(scene: Scene) -> list[int]:
    """Returns after how many rounds each server began."""
    entries = entries_of(scene.directory)
    return [it.completed for it in entries if isinstance(it, ServerIntroduced)]


def test_a_run_whose_server_dies_beside_its_saves_ends_with_the_bits_of_a_quiet_one(
    run: Run, sgd: Federation, fates: Fates, tmp_path: Path
) -> None:
    """No state of these rounds is stated, so each model goes out before its save."""
    scene = make_scene(tmp_path / "run", sgd)
    run(fates.run(scene, [Fate(point="sealed", round=2)], parties=WORKERS))
    assert_same_bits(scene, sgd)
    # Workers had round 3's model; its server did not have the state after round 2.
    assert begun(scene) == [0, 1]
    assert assert_log_holds(scene, fates, servers=2) == [1, 2, 2, 3, 4, 5, 6]


@pytest.mark.long
def test_it_does_so_wherever_the_server_dies(
    run: Run, sgd: Federation, fates: Fates, tmp_path: Path
) -> None:
    deaths = fates_of(
        "before the record", "recorded", "before the seal", "sealed", "committed"
    )
    scene = make_scene(tmp_path / "run", sgd)
    run(fates.run(scene, deaths, parties=WORKERS))
    assert_same_bits(scene, sgd)
    # Only a state that was committed is gone on from.
    assert begun(scene) == [0, 0, 1, 2, 3, 5]
    rounds = assert_log_holds(scene, fates, servers=6)
    assert rounds == [1, 2, 2, 3, 3, 4, 4, 5, 6]


def test_a_server_that_dies_while_it_seals_has_its_workers_report_once_more(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    averaging: Federation,
    fates: Fates,
    tmp_path: Path,
) -> None:
    """Each state is stated: what is stated is never lost."""
    monkeypatch.setattr(state, "MARK_SECONDS", 0.0)
    scene = make_scene(tmp_path / "run", averaging)
    deaths = [
        Fate(point="recorded", round=2),
        Fate(point="model sealed", round=ROUNDS),
    ]
    run(fates.run(scene, deaths, parties=WORKERS))
    assert_same_bits(scene, averaging)
    assert begun(scene) == [0, 1, ROUNDS]
    assert assert_log_holds(scene, fates, servers=3) == [1, 2, 2, 3, 4, 5, 6]
    for party in WORKERS:
        assert len(scene.events(party, "finished")) == 1


@pytest.mark.long
def test_a_state_that_is_stated_is_never_lost_wherever_the_server_dies(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    averaging: Federation,
    fates: Fates,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(state, "MARK_SECONDS", 0.0)
    scene = make_scene(tmp_path / "run", averaging)
    deaths = [
        *fates_of("before the seal", "sealed", "recorded", "before the commit"),
        Fate(point="committed", round=5),
        Fate(point="committed", round=ROUNDS),
        Fate(point="model sealed", round=ROUNDS),
        Fate(point="model sealed", round=ROUNDS),
    ]
    run(fates.run(scene, deaths, parties=WORKERS))
    assert_same_bits(scene, averaging)
    assert begun(scene) == [0, 0, 1, 2, 3, 5, 6, 6, 6]
    assert_log_holds(scene, fates, servers=9)


@pytest.mark.usefixtures("quick")
def test_a_round_is_made_of_those_who_were_chosen_before_its_server_died(
    run: Run, some: Federation, fates: Fates, tmp_path: Path
) -> None:
    """Carol comes when the round of the other two is being added up."""
    scene = make_scene(tmp_path / "run", some)

    async def story() -> None:
        data = sources(THREE)

        def work(name: str) -> asyncio.Task[None]:
            return asyncio.ensure_future(
                scene.work(scene.node(name), task(), data[name])
            )

        working = [work("alice"), work("bob")]
        fate = Fate(point="recorded", round=2)
        await fates.serve_until_dead(scene, fate)
        working.append(work("carol"))
        await fates.serve_until_dead(scene, Fate(point="cohort chosen", round=2))
        await asyncio.gather(scene.serve(scene.node("aggregator"), task()), *working)

    run(story())
    assert begun(scene) == [0, 1, 1]
    recorded = participants(scene)
    numbers = assert_log_holds(scene, fates, servers=3)
    assert numbers == [1, 2, 2, 3, 4, 5, 6]
    assert recorded[1] == recorded[2] == ["alice", "bob"]
    assert recorded[-1] == list(THREE)
    model = trained_by(some.plan, [recorded[0], *recorded[2:]])
    assert_model(scene, some, model)
