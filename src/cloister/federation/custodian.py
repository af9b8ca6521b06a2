"""What a node needs of its party's custodian, as the federation sees it."""

from __future__ import annotations

from typing import Protocol

from cloister.ratls.mark import Mark


class Custodian(Protocol):
    """The party's own service, which warrants this node and remembers the run."""

    @property
    def mark(self) -> Mark | None:
        """How far the party knows the run to be; None before the first deposit."""
        ...

    async def renew(self) -> None:
        """Renews the node's warrant; the node holds the new one afterwards.

        Raises:
            VerificationError: If the party no longer warrants this node.
            ProtocolError: If nobody can be asked.
        """
        ...

    async def deposit(self, mark: Mark) -> None:
        """Has the party remember how far the run has come.

        Raises:
            VerificationError: If it contradicts what the party knows, or another node
                has taken this one's place.
            ProtocolError: If nobody can be asked.
        """
        ...
