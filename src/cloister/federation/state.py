"""What the rounds need of the state's keeper and witness; when a state is stated.

A state is stated with a model, in the audit log and in marks. Before that it is
durable: nobody can be told of a state that its server may lose.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from cloister.storage.mirror.subject import Kept

# How much training may pass between two marks. A state that is stated is waited for
# until it is durable, and the log is synced for it.
MARK_SECONDS: Final = 5.0


class StateKeeper(Protocol):
    """Keeps the server's state; one thread calls it at a time.

    `ServerMirror` is one.
    """

    @property
    def newest(self) -> Kept:
        """The newest state that is durable."""
        ...

    def seal(self, completed: int, *, head: bytes) -> Kept:
        """Returns the state as it is now, sealed; `commit` makes it durable.

        Args:
            completed: Rounds completed in it.
            head: The head of the log that went out with the model of the last of them:
                which history the state is of.

        Raises:
            StorageError: If it cannot be written.
        """
        ...

    def commit(self) -> None:
        """Makes what was sealed the newest; it is durable when this returns.

        Raises:
            StorageError: If it cannot be written.
        """
        ...

    def choose(self, round_number: int, parties: tuple[str, ...]) -> None:
        """Notes, durably, whose updates a round is to be made of.

        Args:
            round_number: The round after the newest state.
            parties: They.

        Raises:
            StorageError: If it cannot be written.
        """
        ...

    def cohort(self) -> tuple[str, ...]:
        """Returns whom `choose` named for the round after the newest state.

        Nobody, if no server has come so far.
        """
        ...


class Witness(Protocol):
    """Remembers states outside of the server's host; `ServerMarks` is one."""

    async def told(self, kept: Kept) -> None:
        """Returns when the server's own party knows of a state, and of this server.

        From then on that party lets no server begin with a state before it, nor one
        that another has taken the place of go on.

        Args:
            kept: The state, durable and recorded.
        """
        ...


class MarkTimer:
    """Says whether a mark is due.

    Args:
        elapsed: A counter of seconds that only rises.
    """

    def __init__(self, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._elapsed = elapsed
        self._last: float | None = None

    def take(self, *, final: bool) -> bool:
        """Returns whether the model published now carries a mark.

        It does if it is the server's first, if it is the final one, or if the last
        mark is `MARK_SECONDS` old.
        """
        now = self._elapsed()
        if not final and self._last is not None and now < self._last + MARK_SECONDS:
            return False
        self._last = now
        return True
