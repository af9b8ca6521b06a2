"""The updates of one round on their way into its sum.

The arithmetic runs beside the receiving, in a thread: NumPy releases the interpreter's
lock. The last update is never added to the sum, and of two neither is: the step that
follows reads them where they lie, which saves a pass over a model's memory each.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from typing_extensions import override

from cloister.errors import CloisterError
from cloister.federation.aggregation import ExactSum, OrderedSum
from cloister.federation.model_state import Mean
from cloister.federation.staging import (
    PLACES,
    OrderedStaging,
    Place,
    SharedStaging,
    Staging,
)
from cloister.federation.updates import Update


class Intake(ABC):
    """Takes the whole updates of one round.

    Args:
        staging: Gives places to those on their way.
        total: What they are added to; empty.
        threads: Where the arithmetic runs.
        failed: Called if it fails: the round cannot end any more.

    Attributes:
        staging: The same.
        limits: What updates must keep to.
    """

    def __init__(
        self,
        staging: Staging,
        total: OrderedSum | ExactSum,
        *,
        threads: Executor,
        failed: Callable[[Exception], None],
    ) -> None:
        self.staging = staging
        self.limits = total.limits
        self._total = total
        self._threads = threads
        self._failed = failed
        self._adding: asyncio.Task[None] | None = None

    def take(self, place: Place, update: Update) -> None:
        """Takes a whole update, which counts from now on."""
        place.keep()
        self._put(place, update)
        # One that failed stays: the sum is not what it should be, and `close` says so.
        if self._adding is None or (
            self._adding.done() and self._adding.exception() is None
        ):
            self._adding = asyncio.create_task(self._add_due())
            self._adding.add_done_callback(self._look)

    async def close(self, over: CloisterError) -> Mean:
        """Returns the mean of all updates taken.

        Args:
            over: What those are told that come too late.
        """
        self.staging.end(over)
        if self._adding is not None:
            await self._adding
        return self._total.closing(self._rest())

    async def settle(self) -> None:
        """Waits until nothing is being added; for a run that has failed."""
        if self._adding is not None:
            await asyncio.wait((self._adding,))

    def abandon(self) -> None:
        """Drops what came: the run has failed, and its process may live on a while."""
        self._drop()
        if self._adding is None or self._adding.done():
            self._total.wipe()
        else:
            self._adding.add_done_callback(lambda _: self._total.wipe())

    def _look(self, adding: asyncio.Task[None]) -> None:
        error = None if adding.cancelled() else adding.exception()
        if isinstance(error, Exception):
            self._failed(error)

    async def _add_due(self) -> None:
        loop = asyncio.get_running_loop()
        while (due := self._due()) is not None:
            place, update = due
            await loop.run_in_executor(self._threads, partial(self._total.add, update))
            self.staging.free(place)

    @abstractmethod
    def _put(self, place: Place, update: Update) -> None:
        """Keeps an update until it is due."""

    @abstractmethod
    def _due(self) -> tuple[Place, Update] | None:
        """Returns the next update to add; None if nothing is to be done now."""

    @abstractmethod
    def _rest(self) -> list[Update]:
        """Returns what was never due, in the order of the sum."""

    @abstractmethod
    def _drop(self) -> None:
        """Drops what is not in the sum."""


class OrderedIntake(Intake):
    """Adds in the order of the plan; `OrderedStaging` lets updates come like that.

    Args:
        order: The parties that contribute.
        total: The sum; empty.
        update_bytes: Size of an update on the wire.
        threads: Where the arithmetic runs.
        failed: Called if it fails.
    """

    def __init__(
        self,
        order: tuple[str, ...],
        total: OrderedSum,
        *,
        update_bytes: int,
        threads: Executor,
        failed: Callable[[Exception], None],
    ) -> None:
        staging = OrderedStaging(order, update_bytes=update_bytes)
        super().__init__(staging, total, threads=threads, failed=failed)
        self._order = deque(order)
        # A sum, a whole update and a part of one more are the most there is.
        self._never_added = PLACES if len(order) <= PLACES else 1
        self._whole: dict[str, tuple[Place, Update]] = {}

    @override
    def _put(self, place: Place, update: Update) -> None:
        self._whole[place.party] = (place, update)

    @override
    def _due(self) -> tuple[Place, Update] | None:
        if len(self._order) <= self._never_added or self._order[0] not in self._whole:
            return None
        return self._whole.pop(self._order.popleft())

    @override
    def _rest(self) -> list[Update]:
        return [self._whole[party][1] for party in self._order]

    @override
    def _drop(self) -> None:
        self._whole.clear()


class SharedIntake(Intake):
    """Adds in order of coming; the sum is the same in any order.

    Args:
        total: The sum; empty.
        update_bytes: Size of an update on the wire.
        allowed_seconds: How long one may take that others wait for.
        threads: Where the arithmetic runs.
        failed: Called if it fails.
    """

    def __init__(
        self,
        total: ExactSum,
        *,
        update_bytes: int,
        allowed_seconds: float,
        threads: Executor,
        failed: Callable[[Exception], None],
    ) -> None:
        staging = SharedStaging(
            update_bytes=update_bytes, allowed_seconds=allowed_seconds
        )
        super().__init__(staging, total, threads=threads, failed=failed)
        self._whole: deque[tuple[Place, Update]] = deque()

    @override
    def _put(self, place: Place, update: Update) -> None:
        self._whole.append((place, update))

    @override
    def _due(self) -> tuple[Place, Update] | None:
        return self._whole.popleft() if self._whole else None

    @override
    def _rest(self) -> list[Update]:
        return []

    @override
    def _drop(self) -> None:
        self._whole.clear()
