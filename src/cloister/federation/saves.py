"""The saves of a server's state: when each may begin, and who waits for it.

The work is done in threads; one save is under way at a time. What is saved when is the
publisher's to say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from cloister.federation.audit import RoundAudit
from cloister.federation.state import StateKeeper
from cloister.storage.mirror.subject import Kept

Result = TypeVar("Result")


class Saves:
    """Has a keeper keep the state, and knows whether the state is whole.

    Args:
        keeper: Keeps it; its newest is the state as it is.
        audit: The run's log, which is on the disk before any state that follows from
            its last record.
        threads: Where the work is done.
    """

    def __init__(
        self, keeper: StateKeeper, *, audit: RoundAudit, threads: Executor
    ) -> None:
        self._keeper = keeper
        self._audit = audit
        self._threads = threads
        # Round and head of the state in memory, where it is none that is kept already
        # or may not be.
        self._waiting: tuple[int, bytes] | None = None
        self._under_way: asyncio.Task[None] | None = None

    @property
    def newest(self) -> Kept:
        """The newest durable state."""
        return self._keeper.newest

    async def choose(self, round_number: int, parties: tuple[str, ...]) -> None:
        """Notes, durably, whose updates a round is to be made of.

        Raises:
            StorageError: If it cannot be written.
        """
        await self._in_thread(partial(self._keeper.choose, round_number, parties))

    @contextlib.contextmanager
    def changing(self, round_number: int, *, head: bytes) -> Iterator[None]:
        """Holds for as long as the state changes, and until its round is recorded.

        If that fails, the state in memory is kept no more: it may be half of two, or
        ahead of the log.

        Args:
            round_number: The round that changes it.
            head: The head that went out with the round's model.
        """
        self._waiting = None
        yield
        self._waiting = round_number, head

    async def seal(self, completed: int, *, head: bytes) -> Kept:
        """Returns the state, sealed and not yet durable.

        Args:
            completed: Rounds completed in it.
            head: The head that went out with the model of the last one.

        Raises:
            StorageError: If it cannot be written.
        """
        return await self._in_thread(partial(self._keeper.seal, completed, head=head))

    async def commit(self) -> None:
        """Returns when what was sealed is durable, and the log before it.

        Raises:
            StorageError: If that is not certain.
        """
        # Whatever comes of it: sealed once more the state would have another digest
        # than the log has.
        self._waiting = None
        await self._in_thread(self._commit)

    def begin(self, completed: int, *, head: bytes) -> None:
        """Begins to save the state, beside whatever else goes on; as `seal`."""
        self._under_way = asyncio.create_task(self._save(completed, head))

    async def settled(self) -> None:
        """Waits for a save that is under way; the state may change then.

        Raises:
            StorageError: If it failed.
        """
        if self._under_way is not None:
            await self._under_way

    async def rest(self) -> Kept:
        """Returns the newest durable state, when nothing is under way.

        That is the state in memory, if it may be kept.

        Raises:
            StorageError: If it cannot be written.
        """
        await self.settled()
        if self._waiting is not None:
            completed, head = self._waiting
            await self._save(completed, head)
        return self.newest

    async def _save(self, completed: int, head: bytes) -> None:
        await self.seal(completed, head=head)
        await self.commit()

    def _commit(self) -> None:
        self._audit.sync()
        self._keeper.commit()

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
