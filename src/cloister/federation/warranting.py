"""Keeps a node's warrant in force: its party's word for it lasts a day or so.

A warrant is renewed at half of its life, so a custodian may be away for as long as the
other half.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ProtocolError, VerificationError
from cloister.federation.audit import WarrantAudit
from cloister.federation.custodian import Custodian
from cloister.ratls.node import Node

# A wait is cut into pieces of this length: the machine may sleep, or its clock be set.
LOOK_SECONDS = 10.0
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0


def seconds_to_renewal(node: Node) -> float:
    """Returns how long the node's warrant is still in the first half of its life."""
    terms = node.warrant.current.terms
    return (terms.issued_at + terms.expires_at) / 2 - node.clock().timestamp()


def seconds_in_force(node: Node) -> float:
    """Returns how long the node's warrant still lasts."""
    return node.warrant.current.terms.expires_at - node.clock().timestamp()


async def keep_warranted(
    node: Node,
    custodian: Custodian,
    *,
    audit: WarrantAudit,
    log: FilteringBoundLogger,
) -> NoReturn:
    """Renews the node's warrant whenever half of its life is over, until cancelled.

    Tries again while the custodian is away, and says so once. Others renew it by the
    way: a deposit that finds its line broken meets the custodian anew. So it is the
    warrant that is looked at, and not whose doing it is.

    Args:
        node: The node.
        custodian: Its party's custodian.
        audit: Receives the warrant again and again; it knows which are new.
        log: One line for each time that the custodian is away.

    Raises:
        StorageError: If a new warrant cannot be recorded.
        VerificationError: If the party no longer warrants this node.
        ProtocolError: If the warrant has ended and there is no other: without its
            party's word a node is nobody's.
    """
    renewal = Renewal(node, custodian, log=log)
    pause = FIRST_RETRY_SECONDS
    while True:
        audit.warrant_renewed(node.warrant.current)
        left = seconds_to_renewal(node)
        if left > 0:
            await asyncio.sleep(min(left, LOOK_SECONDS))
            continue
        error = await renewal.attempt()
        audit.warrant_renewed(node.warrant.current)
        in_force = seconds_in_force(node)
        if in_force <= 0:
            raise _ended(error)
        # Also after a success: a custodian whose clock is behind gives old warrants.
        await asyncio.sleep(min(pause, in_force))
        pause = min(2 * pause, LAST_RETRY_SECONDS) if error else FIRST_RETRY_SECONDS


def _ended(error: CloisterError | None) -> ProtocolError:
    return ProtocolError(
        "this node's own warrant has ended",
        code="warrant-expired",
        expected="a warrant in force",
        got=f"none from the custodian ({error.code})" if error else "an old one",
        remedy="Let the party's custodian be reached, and look at its clock.",
    )


class Renewal:
    """Renews a node's warrant, as far as the custodian is there.

    Args:
        node: The node.
        custodian: Its party's custodian.
        log: One line for each time that it is away.
    """

    def __init__(
        self, node: Node, custodian: Custodian, *, log: FilteringBoundLogger
    ) -> None:
        self._node = node
        self._custodian = custodian
        self._log = log
        self._away = False

    async def attempt(self) -> CloisterError | None:
        """Returns None, or why the warrant is still the old one.

        Raises:
            VerificationError: If the party no longer warrants this node.
        """
        try:
            await self._custodian.renew()
        except VerificationError:
            raise
        except CloisterError as error:
            if not self._away:
                self._log.warning(
                    "warrant-renewal-failed",
                    code=error.code,
                    reason=str(error),
                    seconds_left=round(seconds_in_force(self._node)),
                )
            self._away = True
            return error
        self._away = False
        return None
