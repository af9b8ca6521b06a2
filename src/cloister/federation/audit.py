"""What the parts of a server need of the run's audit log, each as it sees it.

`AuditLog` is all of them. What cannot be recorded does not happen: their errors end the
run.
"""

from __future__ import annotations

from typing import Protocol

from cloister.errors import CloisterError
from cloister.federation.audit_records import Participant
from cloister.ratls.admission_table import Peer
from cloister.ratls.warrant import Warrant


class RoundAudit(Protocol):
    """Where rounds are recorded before the model that they led to goes out."""

    @property
    def head(self) -> bytes:
        """Head of the log, 32 bytes."""
        ...

    @property
    def durable_head(self) -> bytes:
        """The newest head that outlives a cut of power, 32 bytes.

        No other may go into a mark: a log that lacks it then would count as cut.
        """
        ...

    def round_completed(
        self,
        number: int,
        *,
        head: bytes,
        participants: tuple[Participant, ...],
        state: bytes | None,
    ) -> None:
        """Records a round.

        Args:
            number: The round.
            head: The head that went out with its model.
            participants: Whose updates counted, in plan order.
            state: SHA-256 of the state after it, where it is stated.

        Raises:
            StorageError: If it cannot be written.
        """
        ...

    def sync(self) -> None:
        """Returns when all records are on the disk; may be called from any thread.

        A state that outlives a cut of power must not be ahead of the log.

        Raises:
            StorageError: If that is not certain.
        """
        ...


class CallAudit(Protocol):
    """Where refused calls of admitted nodes are recorded."""

    def call_refused(self, peer: Peer, error: CloisterError) -> None:
        """Records that a node's call was refused while it trained.

        Raises:
            StorageError: If it cannot be written.
        """
        ...


class WarrantAudit(Protocol):
    """Where a node's own warrants are recorded."""

    def warrant_renewed(self, warrant: Warrant) -> None:
        """Records the warrant that is in force, unless it is the one recorded last.

        Nothing is recorded of one that has ended.

        Raises:
            StorageError: If it cannot be written.
        """
        ...
