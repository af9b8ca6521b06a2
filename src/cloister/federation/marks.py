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
from cloister.plan.sections import Predecessor
from cloister.ratls.epochs import key_digest
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.storage.mirror.subject import Kept

_REMEDY = (
    "Restore the newest state; to begin again, give the plan a new run, or have every"
    " party's operator run `cloister custodian rewind`, and start with --fresh."
)


def check_state(
    plan: Plan, kept: Kept | None, mark: Mark | None, *, taken_over: bool
) -> Kept | None:
    """Returns the state that a server goes on from; None if it makes the first one.

    Steps: (1) there is one, if anybody knows of one; (2) taken over from the plan
    before, it is the one that this plan names; (3) it is not of an earlier round than
    the mark; (4) of the mark's round, it is the mark's.

    Args:
        plan: The server's plan.
        kept: The newest state in its mirror, or in that of the plan before.
        mark: How far the server's party knows the run to be.
        taken_over: Whether it is that of the plan before.

    Raises:
        ConfigError: If step 1 or 2 fails.
        VerificationError: If step 3 or 4 fails.
    """
    before = plan.predecessor
    # Step 1: missing
    if kept is None:
        if before is not None or mark is not None:
            raise _missing(before, mark)
        return None
    # Step 2: the predecessor's
    if taken_over and before is not None:
        expected = f"{before.state} after round {before.round}"
        got = f"{format_digest(kept.digest)} after round {kept.round}"
        if expected != got:
            raise ConfigError(
                "the plan goes on from another state than this server has",
                code="state-differs",
                expected=expected,
                got=got,
                remedy="Amend the plan with the state that the custodian has; stop a"
                " server in good order first, so that it brings the newest one there.",
            )
    # Step 3: rolled back
    if mark is not None and kept.round < mark.round:
        raise VerificationError(
            "the run has come further than this server's state",
            code="state-rolled-back",
            expected=f"round {mark.round} with the state {mark.state.hex()}",
            got=f"round {kept.round}",
            remedy=_REMEDY,
        )
    # Step 4: forked
    if mark is not None and kept.round == mark.round and kept.digest != mark.state:
        raise VerificationError(
            f"this server has another state of round {mark.round} than its party knows",
            code="state-forked",
            expected=mark.state.hex(),
            got=kept.digest.hex(),
            remedy=_REMEDY,
        )
    return kept


def _missing(before: Predecessor | None, mark: Mark | None) -> ConfigError:
    if mark is not None:
        known = f"the state {mark.state.hex()} after round {mark.round}, or a later one"
    elif before is not None:
        known = f"the state {before.state} after round {before.round}"
    else:
        raise RuntimeError("nothing is missing that nobody knows of")
    return ConfigError(
        "the run goes on from a state that is not here",
        code="state-missing",
        expected=known,
        got="a server without any state",
        remedy=_REMEDY,
    )


def check_onward(header: ModelHeader, mark: Mark | None, *, completed: int) -> int:
    """Returns the rounds completed by a server that is met for the first time.

    Steps: (1) it is not behind what this node has seen, nor behind the party's mark;
    (2) at the mark's round it says which state it has, and that is the mark's.

    Args:
        header: The first model it sends.
        mark: How far this node's party knows the run to be.
        completed: By what this node itself saw, the fewest rounds that a server can
            have completed.

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
