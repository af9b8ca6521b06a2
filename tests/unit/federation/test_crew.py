from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloister.federation.crew import Crew


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("parts", [0, 1, 2, 7])
def test_every_part_is_done_once(
    pool: ThreadPoolExecutor, count: int, parts: int
) -> None:
    done: list[int] = []
    Crew(threads=pool, count=count).share(parts, done.append)
    assert sorted(done) == list(range(parts))


def test_parts_are_done_at_the_same_time(pool: ThreadPoolExecutor) -> None:
    together = threading.Barrier(2, timeout=10)

    def work(_: int) -> None:
        together.wait()

    Crew(threads=pool, count=2).share(2, work)


def test_a_crew_alone_begins_its_parts_in_order(pool: ThreadPoolExecutor) -> None:
    done: list[int] = []
    Crew(threads=pool, count=1).share(5, done.append)
    assert done == [0, 1, 2, 3, 4]


def test_a_caller_in_the_very_pool_does_not_wait_for_its_own_thread() -> None:
    done: list[int] = []
    with ThreadPoolExecutor(1) as threads:
        crew = Crew(threads=threads, count=3)
        threads.submit(crew.share, 4, done.append).result(timeout=10)
    assert sorted(done) == [0, 1, 2, 3]


@pytest.mark.parametrize("failing", [0, 1])
def test_after_a_failure_nothing_is_begun_and_nothing_still_runs(
    pool: ThreadPoolExecutor, failing: int
) -> None:
    both = threading.Barrier(2, timeout=10)
    begun: list[int] = []

    def work(part: int) -> None:
        begun.append(part)
        both.wait()
        if part == failing:
            raise ValueError("a part failed")

    with pytest.raises(ValueError, match="a part failed"):
        Crew(threads=pool, count=2).share(2, work)
    assert sorted(begun) == [0, 1]

    def first(part: int) -> None:
        begun.append(part)
        raise ValueError("the first part failed")

    begun.clear()
    with pytest.raises(ValueError, match="the first part failed"):
        Crew(threads=pool, count=1).share(5, first)
    assert begun == [0]
