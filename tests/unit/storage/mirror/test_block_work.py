from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from typing_extensions import override

from cloister.storage.mirror.array_layout import ArrayLayout, Block
from cloister.storage.mirror.block_work import BlockWork
from cloister.storage.mirror.subject import ArraySpec

BLOCKS = ArrayLayout(
    [ArraySpec(name="a", shape=(6400,), dtype="|u1")], block_bytes=64
).blocks


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_block_is_done_once_with_memory_of_its_threads_own(count: int) -> None:
    done: list[int] = []
    with ThreadPoolExecutor(4) as threads:
        work = BlockWork(64, threads=threads, count=count)
        for _ in range(20):
            using: set[int] = set()

            def act(block: Block, memory: memoryview, using: set[int] = using) -> None:
                assert memory.nbytes == 64 + 16
                who = id(memory.obj)
                assert who not in using
                using.add(who)
                memory[:4] = block.number.to_bytes(4, "big")
                done.append(int.from_bytes(memory[:4], "big"))
                using.remove(who)

            work.each(BLOCKS, act)
            assert sorted(done) == list(range(100))
            done.clear()


def test_what_a_thread_raises_is_raised_and_the_others_stop() -> None:
    done: list[int] = []

    def act(block: Block, memory: memoryview) -> None:
        if block.number == 10:
            raise KeyError(memory.nbytes)
        done.append(block.number)

    with ThreadPoolExecutor(3) as threads:
        work = BlockWork(64, threads=threads, count=3)
        for _ in range(20):
            with pytest.raises(KeyError):
                work.each(BLOCKS, act)
    alone = BlockWork(64, threads=None, count=3)
    done.clear()
    with pytest.raises(KeyError):
        alone.each(BLOCKS, act)
    assert done == list(range(10))


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_helper_has_begun_is_waited_for_also_after_a_failure(
    fails: bool,  # noqa: FBT001 - a parameter of pytest's
) -> None:
    # Each has one block. The caller has done its own long before the helper ends.
    both = threading.Barrier(2)
    returned = threading.Event()
    ended: list[bool] = []
    caller = threading.get_ident()

    def act(block: Block, memory: memoryview) -> None:
        del block, memory
        both.wait(timeout=10)
        if threading.get_ident() != caller:
            ended.append(not returned.wait(timeout=0.2))
        elif fails:
            raise KeyError

    with ThreadPoolExecutor(1) as threads:
        try:
            BlockWork(64, threads=threads, count=2).each(BLOCKS[:2], act)
        except KeyError:
            assert fails
        at_once = list(ended)
        returned.set()
    assert at_once == [True]


class Pool(ThreadPoolExecutor):
    """One thread; remembers what it was given to do."""

    def __init__(self) -> None:
        super().__init__(1)
        self.given: list[Future[object]] = []

    @override
    def submit(  # type: ignore[override]  # generic there
        self, fn: Callable[..., object], /, *args: object, **kwargs: object
    ) -> Future[object]:
        self.given.append(super().submit(fn, *args, **kwargs))
        return self.given[-1]


@pytest.mark.parametrize("both_fail", [False, True])
def test_after_a_helper_failed_nothing_more_is_begun(
    both_fail: bool,  # noqa: FBT001 - a parameter of pytest's
) -> None:
    both = threading.Barrier(2)
    caller = threading.get_ident()
    begun: list[int] = []

    def act(block: Block, memory: memoryview) -> None:
        del memory
        begun.append(block.number)
        both.wait(timeout=10)
        if threading.get_ident() != caller:
            raise KeyError("the helper's")
        wait(threads.given, timeout=10)
        if both_fail:
            raise ValueError("the caller's, later")

    with Pool() as threads:
        work = BlockWork(64, threads=threads, count=2)
        with pytest.raises(KeyError, match="the helper's"):
            work.each(BLOCKS, act)
    assert sorted(begun) == [0, 1]


def test_a_caller_that_is_the_pools_only_thread_does_not_wait_for_itself() -> None:
    done: list[int] = []
    with ThreadPoolExecutor(1) as threads:
        work = BlockWork(64, threads=threads, count=2)
        threads.submit(
            work.each, BLOCKS, lambda block, _: done.append(block.number)
        ).result(timeout=10)
    assert len(done) == 100


def test_a_helper_helps() -> None:
    # Each waits until the other has begun: with one thread this would not end.
    both = threading.Barrier(2)
    who: set[int] = set()

    def act(block: Block, memory: memoryview) -> None:
        del memory
        if block.number < 2:
            both.wait(timeout=10)
        who.add(threading.get_ident())

    with ThreadPoolExecutor(1) as threads:
        BlockWork(64, threads=threads, count=2).each(BLOCKS, act)
    assert len(who) == 2
