"""A host puts the server's state back: an older one, one of its own making, or none.

Older files open, for the server itself sealed them. That they are not the newest only
those know who remember for longer than the host: the parties' custodians. Whatever is
refused is left as it is, and nobody is told anything new; with the newest state in its
place the run goes on, to the very same model.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.federation_in_memory import Federation
from tests.support.kept_states import (
    PAGE,
    arrays_of,
    place_at,
    read_state,
    save_next,
    write_states,
)
from tests.support.plan_tree import WORKERS
from tests.support.run_audit import links_of
from tests.support.running import Run, until
from tests.support.stopped_run import (
    EARLIER,
    NEWEST,
    StoppedRun,
    cloned,
    refusal_of,
)
from tests.support.whole_run import (
    Hooked,
    Scene,
    make_scene,
    sources,
    task,
    whole_run,
)

from cloister.errors import CloisterError, StorageError
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors
from cloister.federation.course import course_of
from cloister.federation.model_state import ModelState
from cloister.plan.plan import plan_hash
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.model_vault import open_model


def path_of(scene: Scene) -> Path:
    """Where the server's state lies."""
    return scene.place("aggregator").path


def forge(scene: Scene, completed: int) -> None:
    """Writes a state with the server's own key, as all shareholders could."""
    plan = scene.custodians.plan
    model = ModelState(task().initial_model(seed=3), course_of(plan).optimizer)
    path_of(scene).unlink()
    mirror = StateMirror.create(scene.place("aggregator"), model.specs())
    mirror.seal(completed, model.arrays())
    mirror.commit()
    mirror.close()


def damage(scene: Scene) -> None:
    content = bytearray(path_of(scene).read_bytes())
    content[len(content) // 2] ^= 1
    content[-PAGE] ^= 1
    path_of(scene).write_bytes(content)


PUT: dict[str, Callable[[Scene, StoppedRun], object]] = {
    "state-rolled-back": lambda scene, run: path_of(scene).write_bytes(run.earlier),
    "state-forked": lambda scene, _: forge(scene, NEWEST),
    "audit-cut": lambda scene, _: forge(scene, NEWEST + 1),
    "state-missing": lambda scene, _: path_of(scene).unlink(),
    "mirror-damaged": lambda scene, _: damage(scene),
}


@pytest.mark.parametrize("code", PUT)
def test_a_server_refuses_what_was_put_in_the_place_of_its_state(
    run: Run, stopped: StoppedRun, tmp_path: Path, code: str
) -> None:
    """The last but one is of a later round than any; its log does not have that."""
    scene = stopped.copy(tmp_path)
    PUT[code](scene, stopped)
    before = files_of(tmp_path)
    error = run(refusal_of(scene))
    assert error.code == code
    assert error.remedy, "it says what to do"
    assert files_of(tmp_path) == before
    # It never listened: these are of the server before it.
    assert len(scene.events("aggregator", "listening")) == 1
    assert len(scene.events("aggregator", "peer-admitted")) == len(WORKERS)
    assert not scene.model_path.exists()
    for party in ("aggregator", *WORKERS):
        mark = scene.custodians.mark(party)
        assert mark is not None
        assert mark.round == NEWEST


def files_of(root: Path) -> dict[str, bytes]:
    """Returns what lies there of states and audit log; logs and registers grow."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for pattern in ("*-state/*", "run/audit.jsonl")
        for path in root.glob(pattern)
    }


def test_with_the_newest_state_the_run_goes_on_to_the_very_same_model(
    run: Run, stopped: StoppedRun, federation: Federation, tmp_path: Path
) -> None:
    """Also after the host tried another: a refusal leaves no trace."""
    scene, quiet = stopped.copy(tmp_path), make_scene(tmp_path / "quiet", federation)
    newest = path_of(scene).read_bytes()
    path_of(scene).write_bytes(stopped.earlier)
    assert run(refusal_of(scene)).code == "state-rolled-back"
    path_of(scene).write_bytes(newest)

    run(whole_run(scene))
    run(whole_run(quiet))
    [resumed] = scene.events("aggregator", "state-resumed")
    assert resumed["round"] == NEWEST
    one, other = (opened(it, federation) for it in (scene, quiet))
    assert {name: it.tobytes() for name, it in one.items()} == {
        name: it.tobytes() for name, it in other.items()
    }


def opened(scene: Scene, federation: Federation) -> dict[str, NDArray[np.generic]]:
    return open_model(scene.model_path, identity=federation.owner).arrays


def test_workers_remember_where_the_servers_own_party_was_made_to_forget(
    run: Run, stopped: StoppedRun, tmp_path: Path
) -> None:
    scene = stopped.copy(tmp_path)
    path_of(scene).write_bytes(stopped.earlier)
    forget(scene, "aggregator")

    async def story() -> list[object]:
        server = asyncio.ensure_future(scene.serve(scene.node("aggregator"), task()))
        ends = await asyncio.gather(
            *(scene.work(scene.node(it), task(), sources()[it]) for it in WORKERS),
            return_exceptions=True,
        )
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)
        return [it.code if isinstance(it, CloisterError) else it for it in ends]

    assert run(story()) == ["state-rolled-back", "state-rolled-back"]
    # No round was done again, and nobody but that party believes the older state.
    assert [event["round"] for event in scene.events("aggregator", "round")] == list(
        range(1, NEWEST + 1)
    )
    assert read_round(scene) == EARLIER
    for party in WORKERS:
        mark = scene.custodians.mark(party)
        assert mark is not None
        assert mark.round == NEWEST
    assert not scene.model_path.exists()


def test_a_run_that_is_begun_anew_does_not_take_the_log_of_before(
    run: Run, stopped: StoppedRun, federation: Federation, tmp_path: Path
) -> None:
    """It would train to its end, and nobody could audit what came of it."""
    scene = stopped.copy(tmp_path)
    forget(scene, *("aggregator", *WORKERS))
    path_of(scene).unlink()
    log = scene.directory / "audit.jsonl"
    before = log.read_bytes()
    for _ in range(2):  # the second one finds what the first one made
        error = run(refusal_of(scene))
        assert error.code == "audit-state"
        assert "--fresh" in error.remedy
        assert log.read_bytes() == before
    # What the remedy leads to: both set aside.
    path_of(scene).unlink()
    log.rename(log.with_name("aside.jsonl"))
    run(whole_run(scene))
    verify_audit(
        links_of(scene.directory),
        anchors=Anchors(plan_hash=plan_hash(federation.plan)),
        heads=scene.heads(),
    )


def test_a_state_of_another_history_of_the_run_is_no_state_of_this_ones_log(
    run: Run, stopped: StoppedRun, tmp_path: Path
) -> None:
    """Two copies go on, each by itself; then the host exchanges what they made.

    Their party was made to forget: it is the log that shows it.
    """
    one = stopped.copy(tmp_path)
    two = cloned(one, "two")
    for scene in (one, two):
        forget(scene, *("aggregator", *WORKERS))
        run(go_on(scene, until_round=NEWEST + 2))
    path_of(one).write_bytes(path_of(two).read_bytes())
    forget(one, "aggregator")
    error = run(refusal_of(one))
    assert error.code == "audit-state"
    assert one.events("aggregator", "round")[-1]["round"] == NEWEST + 1


async def go_on(scene: Scene, *, until_round: int) -> None:
    """Trains on, and stops before a round."""
    held, holding = threading.Event(), threading.Event()

    def hold() -> None:
        holding.set()
        assert held.wait(10)

    hooked = Hooked({until_round: hold})
    nodes = [
        asyncio.ensure_future(scene.serve(scene.node("aggregator"), task())),
        *(
            asyncio.ensure_future(
                scene.work(
                    scene.node(it), hooked if it == "alice" else task(), sources()[it]
                )
            )
            for it in WORKERS
        ),
    ]
    await until(holding.is_set)
    held.set()
    for node in nodes:
        node.cancel()
    await asyncio.gather(*nodes, return_exceptions=True)


def forget(scene: Scene, *parties: str) -> None:
    """Has operators let the run go back."""
    for party in parties:
        with scene.custodians.register(party) as register:
            register.rewind(scene.custodians.plan.run_id, at=scene.custodians.clock())


def read_round(scene: Scene) -> int:
    model = ModelState(
        task().initial_model(seed=3), course_of(scene.custodians.plan).optimizer
    )
    mirror = StateMirror.open(scene.place("aggregator"), model.specs())
    try:
        assert mirror.newest is not None
        return mirror.newest.round
    finally:
        mirror.close()


def test_two_times_of_one_file_mix_to_one_of_them_or_to_nothing(tmp_path: Path) -> None:
    """The host exchanges every page, and cuts the file at every page, both ways."""
    place = place_at(tmp_path / "own.mirror")
    write_states(place, 2, 3)
    older = place.path.read_bytes()
    save_next(place, 4)
    newer = place.path.read_bytes()
    seen, codes = set(), set()
    for at in range(0, len(newer), PAGE):
        for mixed in (
            older[:at] + newer[at:],
            newer[:at] + older[at:],
            newer[:at] + older[at : at + PAGE] + newer[at + PAGE :],
        ):
            place.path.write_bytes(mixed)
            try:
                completed, found = read_state(place)
            except StorageError as error:
                codes.add(error.code)
                continue
            seen.add(completed)
            expected = arrays_of(completed)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert seen == {3, 4}
    assert codes == {"mirror-damaged"}
