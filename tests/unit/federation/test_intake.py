from __future__ import annotations

import asyncio
import itertools
import math
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.support.rounds_story import LAYOUT, WIDE, filled, update_of
from tests.support.running import Run, until
from typing_extensions import override

from cloister.federation.aggregation import ExactSum, OrderedSum
from cloister.federation.intake import Intake, OrderedIntake, SharedIntake
from cloister.federation.rounds.refusals import late
from cloister.federation.staging import PLACES
from cloister.federation.updates import Update

FOUR = ("alice", "bob", "carol", "dave")
VALUES = {party: 10.0**n for n, party in enumerate(FOUR)}


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def unexpected(error: Exception) -> None:
    raise AssertionError("an update could not be added") from error


def ordered(threads: ThreadPoolExecutor, *parties: str) -> OrderedIntake:
    return OrderedIntake(
        parties or FOUR,
        OrderedSum(WIDE),
        update_bytes=WIDE.size_bytes,
        threads=threads,
        failed=unexpected,
    )


def shared(threads: ThreadPoolExecutor) -> SharedIntake:
    total = ExactSum(WIDE, parties=len(FOUR))
    return SharedIntake(
        total,
        update_bytes=WIDE.size_bytes,
        allowed_seconds=math.inf,
        threads=threads,
        failed=unexpected,
    )


async def bring(
    intake: Intake, party: str, *, refs: list[weakref.ref[object]] | None = None
) -> None:
    async with intake.staging.place(party) as place:
        update = update_of(filled(VALUES[party], WIDE), limits=intake.limits)
        if refs is not None:
            refs.append(weakref.ref(update.statistics))
        intake.take(place, update)


@pytest.mark.parametrize("make", [ordered, shared])
@pytest.mark.parametrize("order", list(itertools.permutations(FOUR))[::5])
def test_the_mean_is_of_all_whoever_comes_first(
    run: Run, threads: ThreadPoolExecutor, make: type[Intake], order: tuple[str, ...]
) -> None:
    async def story() -> None:
        intake: Intake = make(threads)  # type: ignore[call-arg, arg-type]
        refs: list[weakref.ref[object]] = []
        await asyncio.gather(*(bring(intake, party, refs=refs) for party in order))
        mean = await intake.close(late(1))
        expected = np.float32(sum(VALUES.values()) / len(FOUR))
        np.testing.assert_array_equal(mean.mean(0, 10), np.full(10, expected))
        np.testing.assert_array_equal(mean.statistics(), [expected])
        del mean, intake
        await until(lambda: all(ref() is None for ref in refs))

    run(story())


@pytest.mark.parametrize(("parties", "added"), [(2, 0), (3, 2), (4, 3)])
def test_the_last_update_is_never_added_and_of_two_neither_is(
    run: Run, threads: ThreadPoolExecutor, parties: int, added: int
) -> None:
    async def story() -> None:
        intake = ordered(threads, *FOUR[:parties])
        await asyncio.gather(*(bring(intake, it) for it in FOUR[:parties]))
        await intake.close(late(1))
        assert intake._total.count == added
        assert len(intake._rest()) == parties - added

    run(story())


class Counting(OrderedSum):
    """Adds when it is let, and says how many whole updates there are meanwhile."""

    def __init__(self) -> None:
        super().__init__(LAYOUT)
        self.go_on = threading.Semaphore(0)

    @override
    def add(self, update: Update) -> None:
        self.go_on.acquire()
        super().add(update)


def test_two_whole_updates_are_the_most_there_are_at_once(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        total = Counting()
        intake = OrderedIntake(
            FOUR,
            total,
            update_bytes=LAYOUT.size_bytes,
            threads=threads,
            failed=unexpected,
        )
        held = most = 0

        async def bring_small(party: str) -> None:
            nonlocal held, most
            async with intake.staging.place(party) as place:
                held += 1
                most = max(most, held - total.count)
                intake.take(place, update_of(filled(1.0)))

        calls = [asyncio.ensure_future(bring_small(it)) for it in reversed(FOUR)]
        for number in range(len(FOUR)):
            await until(lambda: held == min(number + PLACES, len(FOUR)))  # noqa: B023
            total.go_on.release()
        await asyncio.gather(*calls)
        assert most == PLACES
        await intake.close(late(1))
        assert total.count == len(FOUR) - 1

    run(story())


class Broken(OrderedSum):
    @override
    def add(self, update: Update) -> None:
        raise MemoryError


def test_a_sum_that_could_not_take_an_update_makes_no_mean(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    """Nor with those that come later: it would lack one, and nobody would know."""

    async def story() -> None:
        told: list[Exception] = []
        intake = OrderedIntake(
            FOUR,
            Broken(WIDE),
            update_bytes=WIDE.size_bytes,
            threads=threads,
            failed=told.append,
        )
        await bring(intake, "alice")
        await until(lambda: told != [])  # at once, and not when the round would end
        await bring(intake, "bob")
        assert [type(error) for error in told] == [MemoryError]
        with pytest.raises(MemoryError):
            await intake.close(late(1))

    run(story())


def test_a_run_that_failed_waits_for_what_is_being_added(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        intake = ordered(threads)
        await intake.settle()  # nothing is
        await bring(intake, "alice")
        await intake.settle()
        assert intake._total.count == 1

    run(story())
