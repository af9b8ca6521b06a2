"""What the enrolment port tells the audit of a run; who keeps it is not said here."""

from __future__ import annotations

from typing import Protocol

from cloister.errors import CloisterError
from cloister.plan.plan import Role
from cloister.ratls.admission_table import Admitted
from cloister.ratls.testimony import Testimony


class DoorAudit(Protocol):
    """Keeps who was admitted, who was refused, and whose admission ended.

    Each method returns when the record is written: what it records takes effect after
    it. All are called in the event loop, one at a time, and must not wait for anything
    but a disk.
    """

    def node_admitted(
        self, testimony: Testimony, collateral: str | None, *, admitted: Admitted
    ) -> None:
        """Records an admission that takes effect as soon as this returns.

        Args:
            testimony: What the node showed.
            collateral: The collateral that the testimony names, in the JSON shape of
                DCAP tools.
            admitted: What it is admitted to.

        Raises:
            StorageError: If it cannot be recorded; the node is not admitted then.
        """
        ...

    def node_refused(
        self,
        testimony: Testimony,
        collateral: str | None,
        *,
        role: Role,
        party: str,
        error: CloisterError,
    ) -> None:
        """Records that a node with a good warrant was refused, before it hears of it.

        Only refusals that say something of the node: if the server itself cannot go
        on, nothing is recorded here.

        Args:
            testimony: What it showed so far.
            collateral: See `node_admitted`.
            role: The role that the warrant names.
            party: The party that the warrant names.
            error: Why.

        Raises:
            StorageError: If it cannot be recorded; the node is refused all the same.
        """
        ...

    def admission_withdrawn(self, admitted: Admitted, error: CloisterError) -> None:
        """Records that an admission ended before its time.

        Args:
            admitted: Which.
            error: Why its evidence holds no longer.

        Raises:
            StorageError: If it cannot be recorded; it ends all the same.
        """
        ...
