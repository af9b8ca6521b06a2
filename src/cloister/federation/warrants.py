"""How a node gets its warrant, as the federation sees it."""

from __future__ import annotations

from typing import Protocol

from cloister.plan.plan import PlanHash, Role
from cloister.ratls.identity import Spki
from cloister.ratls.warrant import Warrant


class WarrantSource(Protocol):
    """Whoever signs for a party: its custodian."""

    async def warrant(
        self, *, run_id: str, plan_hash: PlanHash, role: Role, party: str, tls_key: Spki
    ) -> Warrant:
        """Returns a warrant for one node, of an epoch above every earlier one.

        Raises:
            VerificationError: If the party does not warrant this node.
            ConfigError: If nobody can be asked.
        """
        ...
