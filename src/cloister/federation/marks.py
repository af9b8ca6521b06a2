"""What a party knows of a run, held against what a server says.

A custodian remembers for longer than any node lives. Each node deposits marks with the
custodian of its own party while it trains (`deposits.py`), and refuses what contradicts
them.
"""

from __future__ import annotations

from cloister.errors import ConfigError, VerificationError
from cloister.federation.messages import ModelHeader
from cloister.plan.digest import format_digest
from cloister.plan.plan import Plan
from cloister.ratls.epochs import key_digest
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node

_REMEDY = (
    "Restore the newest state; to begin again, give the plan a new run, or have every"
    " party's operator run `cloister custodian rewind`."
)


def check_fresh_start(plan: Plan, mark: Mark | None) -> Plan:
    """Returns a plan whose run a server may begin at its first round.

    Args:
        plan: The server's plan.
        mark: How far the server's party knows the run to be.

    Raises:
        ConfigError: If the plan goes on from a state, for there is none here.
        VerificationError: If rounds of this run were completed before.
    """
    before = plan.predecessor
    # Before the first round there is nothing to go on from but the start itself.
    if before is not None and before.round > 0:
        raise ConfigError(
            "the plan goes on from a state that is not here",
            code="state-missing",
            expected=f"the state {before.state} after round {before.round}",
            got="a server without any state",
            remedy="This version cannot resume a run; give the plan a new run.",
        )
    if mark is not None and mark.round > 0:
        raise VerificationError(
            "the run has come further than this server's state",
            code="state-rolled-back",
            expected=f"round {mark.round} with the state {mark.state.hex()}",
            got="a run from its start",
            remedy=_REMEDY,
        )
    return plan


def check_start(plan: Plan, state: bytes) -> bytes:
    """Returns the state that a server begins with, if the plan names no other.

    Args:
        plan: The server's plan; an amended one may take over before the first round.
        state: The state before it.

    Raises:
        ConfigError: If the plan goes on from another state.
    """
    before = plan.predecessor
    if before is not None and before.state != format_digest(state):
        raise ConfigError(
            "the plan goes on from another state than this server begins with",
            code="state-differs",
            expected=before.state,
            got=format_digest(state),
            remedy="Amend the plan with the state that the custodian has.",
        )
    return state


def check_onward(header: ModelHeader, mark: Mark | None, *, completed: int) -> int:
    """Returns the rounds completed by a server that is met for the first time.

    Steps: (1) it is not behind what this node has seen, nor behind the party's mark;
    (2) at the mark's round it says which state it has, and that is the mark's.

    Args:
        header: The first model it sends.
        mark: How far this node's party knows the run to be.
        completed: Rounds that this node itself saw completed.

    Raises:
        VerificationError: If either step fails.
    """
    got = header.round - 1
    known = max(completed, mark.round if mark else 0)
    # Step 1: rolled back
    if got < known:
        raise VerificationError(
            "the server is behind what this party knows of the run",
            code="state-rolled-back",
            expected=f"round {known} or later"
            + (f" (the mark's state: {mark.state.hex()})" if mark else ""),
            got=f"round {got}",
            remedy=_REMEDY,
        )
    # Step 2: forked. The first model of a server says its state, and so does every
    # model whose mark was deposited; to say nothing here is to hide something.
    if mark is not None and got == mark.round and header.state != mark.state:
        raise VerificationError(
            f"the server has another state of round {got} than this party knows",
            code="state-forked",
            expected=mark.state.hex(),
            got=header.state.hex() if header.state else "no state",
            remedy=_REMEDY,
        )
    return got


def server_mark(node: Node, *, completed: int, state: bytes, audit_head: bytes) -> Mark:
    """Returns what a server has its own party remember.

    Args:
        node: The server's node.
        completed: Rounds completed.
        state: SHA-256 of the state after them.
        audit_head: Head of its audit log.
    """
    return Mark(
        round=completed,
        state=state,
        server_epoch=node.warrant.current.terms.epoch,
        server_key=key_digest(node.identity.tls_spki),
        audit_head=audit_head,
    )
