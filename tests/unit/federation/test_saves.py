from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.kept_in_memory import KeptInMemory
from tests.support.rounds_story import filled
from tests.support.run_audit import RecordedRounds
from tests.support.running import Run
from typing_extensions import override

from cloister.errors import StorageError
from cloister.federation.model_state import ModelState
from cloister.federation.saves import Saves
from cloister.federation.strategies.optimizers import Sgd
from cloister.storage.mirror.subject import Kept

HEAD, LATER = b"\1" * 32, b"\2" * 32


class Medium(KeptInMemory):
    """Keeps nothing any more once it is full."""

    full: str = ""
    error: Exception = StorageError("no room", code="mirror-unwritable")

    @override
    def seal(self, completed: int, *, head: bytes) -> Kept:
        self._check("seal")
        return super().seal(completed, head=head)

    @override
    def commit(self) -> None:
        self._check("commit")
        super().commit()

    def _check(self, what: str) -> None:
        if self.full == what:
            raise self.error


class Disk(RecordedRounds):
    """Notes among a medium's doings that the log was synced."""

    def __init__(self, medium: Medium) -> None:
        super().__init__()
        self._medium = medium

    @override
    def sync(self) -> None:
        self._medium.done.append(("sync", 0))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def saves_of(threads: ThreadPoolExecutor) -> tuple[Saves, Medium]:
    medium = Medium(ModelState(filled(0.0), Sgd()))
    return Saves(medium, audit=Disk(medium), threads=threads), medium


def test_the_log_is_on_the_disk_before_the_state(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        saves, medium = saves_of(threads)
        kept = await saves.seal(1, head=HEAD)
        assert saves.newest.round == 0
        await saves.commit()
        assert saves.newest == kept
        assert medium.done == [("seal", 1), ("sync", 0), ("commit", 1)]

    run(story())


def test_a_save_beside_other_work_is_waited_for(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        saves, _ = saves_of(threads)
        saves.begin(1, head=HEAD)
        await saves.settled()
        assert saves.newest.round == 1
        await saves.settled()

    run(story())


@pytest.mark.parametrize("what", ["seal", "commit"])
def test_a_save_that_fails_is_known_to_whoever_waits_for_it(
    run: Run, threads: ThreadPoolExecutor, what: str
) -> None:
    async def story() -> None:
        saves, medium = saves_of(threads)
        medium.full = what
        saves.begin(1, head=HEAD)
        for waiting in (saves.settled, saves.rest):
            with pytest.raises(StorageError):
                await waiting()
        assert saves.newest.round == 0

    run(story())


def test_a_state_that_is_recorded_and_not_kept_is_kept_when_the_run_rests(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        saves, medium = saves_of(threads)
        assert (await saves.rest()).round == 0
        with saves.changing(1, head=HEAD):
            pass
        with saves.changing(2, head=LATER):
            pass
        assert (await saves.rest()).round == 2
        assert (await saves.rest()).round == 2
        assert [it for it in medium.done if it[0] == "seal"] == [("seal", 2)]
        assert medium.sealed_heads == {2: LATER}

    run(story())


def test_a_state_that_is_half_changed_or_not_recorded_is_never_kept(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        saves, medium = saves_of(threads)
        with pytest.raises(asyncio.InvalidStateError), saves.changing(1, head=HEAD):
            raise asyncio.InvalidStateError
        assert (await saves.rest()).round == 0
        assert medium.done == []

    run(story())


def test_a_state_whose_commit_failed_is_not_sealed_under_another_digest(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    """The log has its digest already, and there is one of each round."""

    async def story(error: Exception) -> None:
        saves, medium = saves_of(threads)
        with saves.changing(1, head=HEAD):
            await saves.seal(1, head=HEAD)
        medium.full, medium.error = "commit", error
        with pytest.raises(type(error)):
            await saves.commit()
        medium.full = ""
        assert (await saves.rest()).round == 0
        assert [it for it in medium.done if it[0] == "seal"] == [("seal", 1)]

    for error in (StorageError("no room", code="full"), MemoryError()):
        run(story(error))
