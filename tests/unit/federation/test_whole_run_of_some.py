"""Whole runs that some workers are enough for, over real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import Tree, average, put, with_quorum
from tests.support.run_audit import entries_of, links_of
from tests.support.running import Run, until
from tests.support.whole_run import (
    Hooked,
    Scene,
    make_scene,
    sources,
    task,
    whole_run,
)

from cloister.errors import ConfigError
from cloister.federation import server
from cloister.federation.audit_records import RoundCompleted
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors
from cloister.federation.course import Course, course_of
from cloister.federation.rounds.cohort import draw
from cloister.federation.server import Outcome
from cloister.plan.plan import Plan
from cloister.storage.model_vault import open_model

THREE = ("alice", "bob", "carol")
ROUNDS = 5


def shortened(tree: Tree) -> Tree:
    put(tree, ("training", "rounds"), ROUNDS)
    return with_quorum(tree, 2, deadline_seconds=1)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Three workers, two of whom are enough."""
    return make_federation(
        tmp_path_factory.mktemp("three"), more_workers=("carol",), change=shortened
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has deadlines pass sooner than any plan can say."""

    def quick_course(plan: Plan, **more: None) -> Course:
        return replace(course_of(plan, **more), deadline_seconds=0.1)

    monkeypatch.setattr(server, "course_of", quick_course)


class Hold:
    """Holds a learner's thread until the loop lets it go on."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._go_on = threading.Event()

    def __call__(self) -> None:
        self._reached.set()
        self._go_on.wait(10)  # a test that fails must not hang

    async def reached(self) -> None:
        await until(self._reached.is_set)

    def let(self) -> None:
        self._go_on.set()


def no_power() -> NoReturn:
    raise ValueError("no power")


class Some:
    """A run of three workers, each of whom a test lets begin."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._data = sources(THREE)
        self.serving = asyncio.ensure_future(
            scene.serve(scene.node("aggregator"), task())
        )

    def work(
        self, party: str, before: dict[int, Callable[[], None]] | None = None
    ) -> asyncio.Task[None]:
        """Has a fresh node of a party take part."""
        node = self.scene.node(party)
        return asyncio.ensure_future(
            self.scene.work(node, Hooked(before or {}), self._data[party])
        )

    async def joined(self, party: str, *, times: int = 1) -> None:
        """Waits until a party's node has been admitted so many times."""
        await until(
            lambda: (
                [
                    it["peer"]
                    for it in self.scene.events("aggregator", "peer-admitted")
                ].count(party)
                >= times
            )
        )


def participants(scene: Scene) -> list[list[str]]:
    """Returns who contributed to each round, as the audit log has it."""
    rounds = [
        it for it in entries_of(scene.directory) if isinstance(it, RoundCompleted)
    ]
    return [[by.party for by in it.participants] for it in rounds]


def assert_held(scene: Scene, outcome: Outcome) -> None:
    """What is so however the workers came and went."""
    assert outcome.rounds == ROUNDS
    who = participants(scene)
    assert len(who) == ROUNDS
    for names in who:
        assert len(names) >= 2
        assert names == [party for party in THREE if party in names]
    report = verify_audit(links_of(scene.directory), anchors=Anchors())
    assert report.completed == ROUNDS
    assert report.seal is not None
    lines = scene.events("aggregator", "round")
    assert [line["parties"] for line in lines] == [len(names) for names in who]


@pytest.mark.usefixtures("quick")
def test_a_run_goes_on_without_a_worker_that_never_comes(
    run: Run, three: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", three)

    async def story() -> Outcome:
        some = Some(scene)
        await asyncio.gather(some.work("alice"), some.work("bob"))
        return await some.serving

    outcome = run(story())
    assert_held(scene, outcome)
    assert participants(scene) == ROUNDS * [["alice", "bob"]]
    assert "accuracy" in outcome.metrics


@pytest.mark.usefixtures("quick")
def test_a_run_goes_on_without_a_worker_that_dies_in_the_middle(
    run: Run, three: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", three)

    async def story() -> Outcome:
        some = Some(scene)
        dying = some.work("carol", {3: no_power})
        rest = [some.work("alice"), some.work("bob")]
        with pytest.raises(ConfigError):
            await dying
        await asyncio.gather(*rest)
        return await some.serving

    assert_held(scene, run(story()))
    assert [names[:2] for names in participants(scene)] == ROUNDS * [["alice", "bob"]]
    assert all("carol" not in names for names in participants(scene)[2:])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dies_first", [False, True])
def test_a_worker_that_comes_late_or_comes_back_contributes_from_then_on(
    run: Run, three: Federation, tmp_path: Path, *, dies_first: bool
) -> None:
    """Alice waits for it in round 3; whoever is too late for that round trains on."""
    scene = make_scene(tmp_path / "run", three)

    async def story() -> Outcome:
        some, hold = Some(scene), Hold()
        workers = [some.work("alice", {3: hold}), some.work("bob")]
        if dies_first:
            with pytest.raises(ConfigError):
                await some.work("carol", {2: no_power})
        await hold.reached()
        workers.append(some.work("carol"))
        await some.joined("carol", times=2 if dies_first else 1)
        # A seat is open, and two are enough: the round ends without alice.
        await until(lambda: len(scene.events("aggregator", "round")) >= 3)
        hold.let()
        await asyncio.gather(*workers)
        return await some.serving

    assert_held(scene, run(story()))
    assert participants(scene)[2] == ["bob", "carol"]
    [late] = scene.events("alice", "update-late")
    assert late["round"] == 3
    assert all(
        line["code"] != "update-late" for line in scene.events("alice", "failed")
    )


def sampled(tree: Tree) -> Tree:
    put(tree, ("rounds", "sample"), 2)
    put(tree, ("training", "rounds"), 8)
    return average(tree)


def test_federated_averaging_of_drawn_workers_learns_and_anybody_can_draw_again(
    run: Run, tmp_path: Path
) -> None:
    four = make_federation(
        tmp_path / "keys", more_workers=("carol", "dave"), change=sampled
    )
    scene = make_scene(tmp_path / "run", four)
    outcome = run(whole_run(scene))
    names = tuple(worker.name for worker in four.plan.workers)
    seed = four.plan.training.seed
    assert participants(scene) == [
        list(draw(names, seats=2, seed=seed, round_number=number))
        for number in range(1, 9)
    ]
    assert outcome.metrics["accuracy"] > 0.9
    report = verify_audit(links_of(scene.directory), anchors=Anchors())
    assert report.completed == 8
    trained = [len(scene.events(name, "round")) for name in names]
    assert sum(trained) == 2 * 8


def alone(tree: Tree) -> Tree:
    parties = tree["party"]
    assert isinstance(parties, list)
    tree["party"] = [
        it for it in parties if isinstance(it, dict) and it["name"] != "bob"
    ]
    put(tree, ("training", "rounds"), 4)
    return put(tree, ("rounds", "evaluate_every"), 2)


def test_a_run_of_one_worker_says_its_loss_and_metrics_nowhere(
    run: Run, tmp_path: Path
) -> None:
    one = make_federation(tmp_path / "keys", change=alone)
    scene = make_scene(tmp_path / "run", one)
    outcome = run(whole_run(scene))
    assert outcome.metrics == {}
    lines = scene.events("aggregator", "round")
    assert [line["loss"] for line in lines] == 4 * [None]
    told = [line["metrics"] for line in scene.events("aggregator", "evaluation")]
    assert all(not metrics for metrics in told)
    model = open_model(scene.model_path, identity=one.owner)
    assert not [name for name in model.metadata if name.startswith("metric")]
    assert all(np.isfinite(array).all() for array in model.arrays.values())
    for path in scene.directory.rglob("*.jsonl"):
        assert "accuracy" not in path.read_text()
