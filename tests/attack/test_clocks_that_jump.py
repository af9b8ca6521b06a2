"""A clock jumps while no server runs, and the next one goes on from the state.

A state knows no time; the log and the warrants do. Whatever the clock says, the state
stays as it is, and with the right time the run goes on.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from tests.support.federation_in_memory import START, HandClock
from tests.support.plan_tree import WORKERS
from tests.support.running import Run
from tests.support.stopped_run import (
    NEWEST,
    StoppedRun,
    state_directory,
)
from tests.support.whole_run import Scene, sources, task

from cloister.errors import CloisterError

HOUR = timedelta(hours=1)
MONTH = timedelta(days=40)
PATIENCE_SECONDS = 0.5


def kept(scene: Scene) -> dict[str, bytes]:
    """Returns what lies in a directory of states."""
    return {path.name: path.read_bytes() for path in state_directory(scene).iterdir()}


async def ends_of(scene: Scene, *, ahead: timedelta, alone: bool) -> list[object]:
    """Returns how a server whose clock is ahead ended, and its workers: codes, or None.

    Args:
        scene: Where it goes on.
        ahead: By how much its clock is ahead of everybody else's.
        alone: Whether no worker comes.
    """
    server = scene.node("aggregator", clock=HandClock(START + ahead))
    ends = await asyncio.gather(
        scene.serve(server, task()),
        *(
            scene.work(scene.node(it), task(), sources()[it])
            for it in WORKERS
            if not alone
        ),
        return_exceptions=True,
    )
    return [it.code if isinstance(it, CloisterError) else None for it in ends]


def test_a_clock_that_was_set_back_is_corrected_by_what_others_signed(
    run: Run, stopped: StoppedRun, tmp_path: Path
) -> None:
    scene = stopped.copy(tmp_path)
    assert run(ends_of(scene, ahead=-HOUR, alone=False)) == [None, None, None]
    [resumed] = scene.events("aggregator", "state-resumed")
    assert resumed["round"] == NEWEST
    assert scene.model_path.exists()


def test_a_clock_far_ahead_ends_the_server_and_leaves_the_state(
    run: Run, stopped: StoppedRun, tmp_path: Path
) -> None:
    scene = stopped.copy(tmp_path, patience_seconds=PATIENCE_SECONDS)
    before = kept(scene)
    assert run(ends_of(scene, ahead=MONTH, alone=True)) == ["warrant-expired"]
    assert kept(scene) == before
    patient = replace(scene, patience_seconds=20.0)
    assert run(ends_of(patient, ahead=0 * HOUR, alone=False)) == [None, None, None]


def test_a_log_that_was_written_by_a_clock_ahead_waits_for_that_time(
    run: Run, stopped: StoppedRun, tmp_path: Path
) -> None:
    scene = stopped.copy(tmp_path, patience_seconds=PATIENCE_SECONDS)
    before = kept(scene)
    assert run(ends_of(scene, ahead=HOUR, alone=True)) == ["worker-missing"]
    log = (scene.directory / "audit.jsonl").read_bytes()
    assert run(ends_of(scene, ahead=0 * HOUR, alone=True)) == ["clock-ahead"]
    assert (scene.directory / "audit.jsonl").read_bytes() == log
    assert kept(scene) == before
    assert not scene.model_path.exists()
    patient = replace(scene, patience_seconds=20.0)
    assert run(ends_of(patient, ahead=HOUR, alone=False)) == [None, None, None]
    assert scene.model_path.exists()
