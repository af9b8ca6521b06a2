"""A beginning anew that dies between two of its moves, and the starts after it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation
from tests.support.places import place_of
from tests.support.plan_tree import WORKERS
from tests.support.run_audit import entries_of, links_of
from tests.support.running import Run, until
from tests.support.whole_run import Scene, make_scene, sources, task, whole_run

from cloister.cli.earlier_starts import check_not_over, set_aside
from cloister.cli.places import Place
from cloister.errors import CloisterError, StorageError
from cloister.federation.audit_records import RoundCompleted, ServerIntroduced
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def place(federation: Federation, tmp_path: Path) -> Place:
    """The server's place; no start was there yet."""
    return place_of(federation.plan, tmp_path, party="aggregator")


@pytest.fixture
def scene(federation: Federation, place: Place) -> Scene:
    """A run whose files lie where the place has them."""
    made = make_scene(place.run_directory, federation, patience_seconds=5)
    place.run_directory.mkdir(parents=True)
    place.state_directory.symlink_to(made.place("aggregator").path.parent)
    assert place.mirror_path.resolve() == made.place("aggregator").path
    return made


def forget(scene: Scene) -> None:
    """Has every party's operator let the run go back; nobody begins anew before."""
    for party in scene.custodians.plan.party:
        with scene.custodians.register(party.name) as register:
            if register.known_mark(scene.custodians.plan.run_id) is not None:
                register.rewind(
                    scene.custodians.plan.run_id, at=scene.custodians.clock()
                )


def run_until(run: Run, scene: Scene, event: str, *, workers: Iterable[str]) -> None:
    """Runs nodes until the server says something, and stops them."""

    async def story() -> None:
        said = len(scene.events("aggregator", event)) if scene.files() else 0
        nodes = [
            asyncio.ensure_future(scene.serve(scene.node("aggregator"), task())),
            *(
                asyncio.ensure_future(
                    scene.work(scene.node(name), task(), sources()[name])
                )
                for name in workers
            ),
        ]
        log = scene.directory / "logs" / "aggregator.jsonl"
        await until(
            lambda: log.exists() and len(scene.events("aggregator", event)) > said
        )
        for node in nodes:
            node.cancel()
        await asyncio.gather(*nodes, return_exceptions=True)

    run(story())
    forget(scene)


def set_aside_until(file: Path, place: Place, *, minute: int) -> None:
    """Begins anew, and dies at a file: one that cannot be moved ends it the same."""
    at = NOON + timedelta(minutes=minute)
    blocked = file.parent / f"before-{at:%Y%m%d-%H%M%S}" / file.name
    blocked.mkdir(parents=True)
    with pytest.raises(StorageError):
        set_aside(place, at=at)
    blocked.rmdir()
    assert file.exists()


def anew(place: Place, *, minute: int) -> list[str]:
    """Begins anew to the end; returns the names of what was still there."""
    moved = set_aside(place, at=NOON + timedelta(minutes=minute))
    assert check_not_over(place) is place
    return [it.name for it in moved]


def test_a_state_whose_log_was_moved_already_is_refused_until_it_is_moved_too(
    run: Run, scene: Scene, place: Place
) -> None:
    run_until(run, scene, "round", workers=WORKERS)
    set_aside_until(place.mirror_path, place, minute=0)
    assert not place.audit_path.exists()
    assert check_not_over(place) is place
    with pytest.raises(CloisterError) as caught:
        run(scene.serve(scene.node("aggregator"), task()))
    assert caught.value.code == "audit-cut"
    forget(scene)
    assert "--fresh" in caught.value.remedy
    assert anew(place, minute=1)[-1] == place.mirror_path.name
    run_until(run, scene, "listening", workers=())
    [begun] = [
        it for it in entries_of(scene.directory) if isinstance(it, ServerIntroduced)
    ]
    assert (begun.completed, begun.restart) == (0, False)


def test_the_first_state_of_all_goes_on_with_a_new_log(
    run: Run, scene: Scene, place: Place
) -> None:
    run_until(run, scene, "listening", workers=())
    set_aside_until(place.mirror_path, place, minute=0)
    run(whole_run(scene))
    assert_whole(scene)

    # What it sealed is the last thing that is moved.
    forget(scene)
    set_aside_until(place.model_path, place, minute=1)
    assert not place.audit_path.exists()
    assert not place.mirror_path.exists()
    with pytest.raises(CloisterError) as caught:
        check_not_over(place)
    assert caught.value.code == "run-exists"
    assert "--fresh" in caught.value.remedy
    assert anew(place, minute=2) == [place.model_path.name]


def assert_whole(scene: Scene) -> None:
    """Checks that the log tells one run from its first round to its end."""
    entries = entries_of(scene.directory)
    [begun] = [it for it in entries if isinstance(it, ServerIntroduced)]
    assert (begun.completed, begun.restart) == (0, False)
    rounds = [it.round for it in entries if isinstance(it, RoundCompleted)]
    assert rounds == list(range(1, scene.custodians.plan.training.rounds + 1))
    verify_audit(links_of(scene.directory), anchors=Anchors(), heads=scene.heads())
