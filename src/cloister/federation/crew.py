"""Threads that share a piece of work, part by part."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, wait
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Threads that share work.

    Attributes:
        threads: Where they come from.
        count: How many work at once, the caller's own among them.
    """

    threads: Executor
    count: int

    def share(self, parts: int, work: Callable[[int], None]) -> None:
        """Calls `work` for every part, begun in order; returns when all are done.

        The caller's thread takes part, so nothing waits for a thread that the pool has
        not got: a caller may be in the very pool. After a failure no further part is
        begun, and once all threads have stopped it is raised.
        """
        left = deque(range(parts))

        def take() -> None:
            while True:
                try:
                    part = left.popleft()
                except IndexError:
                    return
                try:
                    work(part)
                except BaseException:
                    # Whatever it is, no thread begins another part. Raised again.
                    left.clear()
                    raise

        others = [self.threads.submit(take) for _ in range(min(self.count, parts) - 1)]
        begun = []
        try:
            take()
        finally:
            begun = [future for future in others if not future.cancel()]
            wait(begun)
        for future in begun:
            future.result()
