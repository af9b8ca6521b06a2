"""Whole runs in which nodes die at any point, and others of their parties go on.

Each worker keeps a state of its own; the result is to be that of a quiet run, to the
bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation
from tests.support.plan_tree import WORKERS
from tests.support.remembering_task import Remembering
from tests.support.running import Run, until
from tests.support.whole_run import Scene, make_scene, sources, whole_run

from cloister.federation.task import Task
from cloister.storage.model_vault import open_model

ROUNDS = 12


def parameters(scene: Scene) -> dict[str, bytes]:
    """Returns the sealed model's values, to the bit."""
    identity = scene.custodians.federation.owner
    arrays = open_model(scene.model_path, identity=identity).arrays
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.fixture(scope="module")
def quiet(
    runner: asyncio.Runner,
    federation: Federation,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """The result of a run in which nobody dies."""
    scene = make_scene(tmp_path_factory.mktemp("run"), federation)
    parties = ("aggregator", *WORKERS)
    runner.run(whole_run(scene, tasks={party: Remembering() for party in parties}))
    return parameters(scene)


class Play:
    """Nodes that begin and die.

    Attributes:
        scene: Where.
        working: Those that are at work, by party.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.working: dict[str, asyncio.Future[object]] = {}

    def start(self, parties: Iterable[str], **tasks: Task) -> None:
        """Starts a fresh node of each party."""
        for party in parties:
            node, its = self.scene.node(party), tasks.get(party, Remembering())
            work: Coroutine[object, object, object] = (
                self.scene.serve(node, its)
                if party == "aggregator"
                else self.scene.work(node, its, sources()[party])
            )
            self.working[party] = asyncio.ensure_future(work)

    async def kill(self, parties: Iterable[str]) -> None:
        """Ends nodes in the middle of what they do."""
        ended = [self.working.pop(party) for party in parties]
        for work in ended:
            work.cancel()
        await asyncio.gather(*ended, return_exceptions=True)


WORKER, SERVER, ALL = ("alice",), ("aggregator",), ("aggregator", "alice", "bob")


@pytest.mark.parametrize(
    ("mortals", "at_round"),
    [
        (WORKER, 7),
        (SERVER, 2),
        (ALL, 7),
        *(
            pytest.param(mortals, number, marks=pytest.mark.long)
            for mortals, number in (
                *((WORKER, number) for number in (1, 12)),
                *((SERVER, number) for number in (1, 7, 12)),
                *((ALL, number) for number in (1, 2, 12)),
            )
        ),
    ],
)
def test_nodes_that_die_in_the_middle_of_a_round_do_not_change_a_bit(
    run: Run,
    federation: Federation,
    quiet: dict[str, bytes],
    tmp_path: Path,
    mortals: tuple[str, ...],
    at_round: int,
) -> None:
    scene = make_scene(tmp_path / "run", federation)

    async def story() -> None:
        loop, hit = asyncio.get_running_loop(), asyncio.Event()

        def note() -> None:
            loop.call_soon_threadsafe(hit.set)

        play = Play(scene)
        play.start(("aggregator", *WORKERS), alice=Remembering({at_round: note}))
        await hit.wait()
        await play.kill(mortals)
        play.start(mortals)
        await asyncio.gather(*play.working.values())

    run(story())
    assert parameters(scene) == quiet


def test_a_worker_that_died_with_its_report_comes_back_to_it(
    run: Run, federation: Federation, quiet: dict[str, bytes], tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation)
    log = scene.directory / "logs" / "alice.jsonl"

    def trained() -> bool:
        return log.exists() and len(scene.events("alice", "round")) == ROUNDS

    async def story() -> None:
        play = Play(scene)
        play.start(("aggregator", *WORKERS))
        await until(trained)
        await play.kill(["alice"])
        play.start(["alice"])
        await asyncio.gather(*play.working.values())

    run(story())
    assert parameters(scene) == quiet
