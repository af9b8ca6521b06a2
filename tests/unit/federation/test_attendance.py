from __future__ import annotations

import asyncio

import pytest
from tests.support.running import Run

from cloister.federation import attendance
from cloister.federation.attendance import Attendance

HOUR = 3600.0


def test_each_party_comes_once() -> None:
    made = Attendance()
    assert [made.join(it) for it in ("alice", "bob", "alice")] == [1, 2, 0]


def test_silence_is_over_when_anything_arrives_or_the_run_is_over(run: Run) -> None:
    async def story() -> None:
        made, over = Attendance(), asyncio.Event()
        assert await made.silence(over, patience_seconds=0.0)
        made._touched -= 2 * HOUR
        assert await made.silence(over, patience_seconds=HOUR)
        made.touch()
        waits = asyncio.ensure_future(made.silence(over, patience_seconds=HOUR))
        await asyncio.sleep(0)
        assert not waits.done()
        over.set()
        assert not await waits

    run(story())


def test_what_arrives_while_silence_is_waited_for_breaks_it(run: Run) -> None:
    async def story() -> None:
        made = Attendance()
        waits = asyncio.ensure_future(
            made.silence(asyncio.Event(), patience_seconds=0.01)
        )
        await asyncio.sleep(0)
        made._touched += HOUR
        assert not await waits

    run(story())


def test_a_farewell_is_over_when_all_who_came_were_told(run: Run) -> None:
    async def story() -> None:
        made = Attendance()
        made.join("alice")
        made.join("bob")
        leaving = asyncio.ensure_future(made.farewell())
        await asyncio.sleep(0)
        made.content("alice", "carol")
        await asyncio.sleep(0)
        assert not leaving.done()
        made.content("bob")
        await leaving
        await made.farewell()

    run(story())


def test_a_farewell_does_not_last(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "_FAREWELL_SECONDS", 0.01)
    made = Attendance()
    made.join("alice")
    run(made.farewell())
