"""What of a server's run its own party's custodian is told, and when.

Its marks go further than those of workers: with a number as quorum each round's state
is told before the round's model goes out. Whoever does such a round again can choose
other parties for it, and two means show in what these differ. So nobody has seen one
mean of a round of which another could still be made: the server's host may put an older
state back, or start a second server from it, but the custodian knows.
"""

from __future__ import annotations

from typing_extensions import override

from cloister.federation.audit_log import AuditLog
from cloister.federation.deposits import Deposits
from cloister.federation.marks import server_mark
from cloister.federation.messages import ModelHeader
from cloister.federation.state import Witness
from cloister.ratls.node import Node
from cloister.storage.mirror.subject import Kept


class ServerMarks(Witness):
    """Makes marks of what a server states, with heads that are on its disk.

    Args:
        node: The server's node.
        deposits: Bring them to its party's custodian.
        audit: The run's audit log.
    """

    def __init__(self, node: Node, deposits: Deposits, *, audit: AuditLog) -> None:
        self._node = node
        self._deposits = deposits
        self._audit = audit

    def offer(self, kept: Kept) -> None:
        """Has a state that is durable and recorded deposited; returns at once."""
        self._deposits.offer(
            server_mark(
                self._node,
                completed=kept.round,
                state=kept.digest,
                audit_head=self._audit.durable_head,
            )
        )

    def publish(self, header: ModelHeader) -> None:
        """Has the state deposited that goes out with a model, if one does."""
        if header.state is not None:
            mark = server_mark(
                self._node,
                completed=header.round - 1,
                state=header.state,
                audit_head=header.audit_head,
            )
            self._deposits.offer(mark)

    def follow(self) -> None:
        """Has the newest mark deposited again, with what was recorded since."""
        # Between the record of a state and the moment when that is durable, a head
        # would go with the mark of the state before.
        if self._audit.marked == self._deposits.offered:
            self._deposits.follow(self._audit.durable_head)

    @override
    async def told(self, kept: Kept) -> None:
        self.offer(kept)
        await self._deposits.reached(kept.round)
