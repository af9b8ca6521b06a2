"""A worker's look at each model's header: is the server where its party knows it to be?

What a party knows is its custodian's mark (`marks.py`) and what this node itself saw.
A server that was started again goes on from what its disk has, and may have lost the
last rounds; it stated the state of none of those. Written out in `docs/spec/wire.md`.
"""

from __future__ import annotations

from cloister.errors import VerificationError
from cloister.federation.custodian import Custodian
from cloister.federation.deposits import Deposits
from cloister.federation.marks import check_onward
from cloister.federation.membership import Membership
from cloister.federation.messages import ModelHeader
from cloister.plan.plan import Plan
from cloister.ratls.admission_table import Peer
from cloister.ratls.epochs import Epoch
from cloister.ratls.mark import Mark


class Watch:
    """Looks at every model's header: is the server where this party knows it to be?

    Args:
        plan: Says how many rounds a server may lose when it dies.
        custodian: Knows the party's mark.
        deposits: Brings new marks to it.
        membership: Is told of the rounds.
    """

    def __init__(
        self,
        plan: Plan,
        custodian: Custodian,
        deposits: Deposits,
        membership: Membership,
    ) -> None:
        self._may_lose = _rounds_lost(plan)
        self._custodian = custodian
        self._deposits = deposits
        self._membership = membership
        self._server: Epoch | None = None
        self._completed = 0  # by the server that this node trains for
        self._furthest = 0  # by any
        self._stated: Mark | None = None
        self._seen: ModelHeader | None = None

    def check(self, header: ModelHeader, server: Peer) -> ModelHeader:
        """Returns the header of a model, if this node may train for its server.

        Raises:
            VerificationError: If the server is behind what this party knows; if, met
                for the first time, it contradicts that; or if it sends a second head of
                its audit log for one round.
        """
        completed = header.round - 1
        if server.node == self._server:
            check_onward(header, None, completed=self._completed)
            _check_one_head(header, self._seen)
        else:
            self._meet(header, server)
        self._seen, self._completed = header, completed
        self._furthest = max(self._furthest, completed)
        self._membership.note_round(header.round)
        if header.state is not None:
            self._stated = Mark(
                round=completed,
                state=header.state,
                server_epoch=server.node.number,
                server_key=server.node.key,
                audit_head=header.audit_head,
            )
            self._deposits.offer(self._stated)
        return header

    def _meet(self, header: ModelHeader, server: Peer) -> None:
        """Looks at the first model of a server."""
        if self._server is not None and server.node.number <= self._server.number:
            raise _former(server, self._server)
        known = _further(self._custodian.mark, self._stated)
        # Of what it saw this node may have to see some again; of what was stated, none.
        least = max(self._furthest - self._may_lose, 0)
        check_onward(header, known, completed=least)
        _check_stated(header, known, server)
        self._server = server.node
        if known is not None:
            # Nothing new, where the server says no state now; but the custodian
            # must be there before anything is done for this server.
            self._deposits.offer(known)


def _rounds_lost(plan: Plan) -> int:
    """Returns how many rounds a server may be behind what its workers saw of it.

    With `all` a model goes out before the state it is of is on the disk, and states are
    kept at an interval. With a number it goes out afterwards: who is counted in a round
    must not depend on whether the server died.
    """
    return plan.rounds.mirror_every if plan.rounds.quorum == "all" else 0


def _further(known: Mark | None, stated: Mark | None) -> Mark | None:
    """Returns the later of the custodian's mark and the last one that was offered."""
    if known is None or stated is None:
        return known or stated
    return stated if stated.round > known.round else known


def _former(server: Peer, newest: Epoch) -> VerificationError:
    return VerificationError(
        "a model of a server that another one took the place of",
        code="epoch-old",
        expected=f"the server of epoch {newest.number} or a newer one",
        got=f"epoch {server.node.number}",
    )


def _check_one_head(header: ModelHeader, seen: ModelHeader | None) -> None:
    """Refuses a second head for a round: its server may show two logs."""
    if seen is None or header.round != seen.round:
        return
    if header.audit_head != seen.audit_head:
        raise VerificationError(
            f"the server sends another audit head for round {header.round}",
            code="audit-forked",
            expected=seen.audit_head.hex(),
            got=header.audit_head.hex(),
            remedy="This node signs one head a round. Compare the heads that the"
            " parties' custodians have with the server's log.",
        )


def _check_stated(header: ModelHeader, known: Mark | None, server: Peer) -> None:
    """Refuses a server that the party does not know and that gives it nothing to know.

    Silence would be a way round the first deposit: without a mark nothing waits.
    """
    if header.state is not None:
        return
    if known is None or Epoch(known.server_epoch, known.server_key) != server.node:
        raise VerificationError(
            "a server that this party does not know states no state",
            code="state-unstated",
            expected="the digest of its state with its first model",
            got="none",
            remedy="Start the server anew; if this party's mark was forgotten in the"
            " middle of a run, the run is over.",
        )
