"""Which key a node may have: by the plan, and by nothing else.

Written out in `docs/spec/custodian.md`.

Both sides ask here: a custodian with its own copy of the plan, before it releases; and
a node, to know which key it has to get. A node asks for kinds, never for names, so it
cannot point at another's key.

Left to the caller: that the node is who it says, and that the plan is in force.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import assert_never, get_args

from cloister.errors import ProtocolError, VerificationError
from cloister.plan.plan import Party, Plan, Role
from cloister.storage.keys import KeyKind


def keys_for(
    plan: Plan,
    *,
    custodian_party: str,
    role: Role,
    party: str,
    kinds: Sequence[KeyKind],
) -> dict[KeyKind, str]:
    """Returns the names of the keys that a node gets from one custodian.

    Steps: (1) something is asked for, and nothing twice; (2) the node's party and the
    custodian's are in the plan, in that role; (3) for each kind, the plan names a key
    that this custodian keeps for this node: a worker's or recipient's data key and a
    recipient's vault key with its own party's custodian alone, a share with any
    shareholder's.

    Args:
        plan: The plan; at a custodian, the copy that its party consented to.
        custodian_party: Whose custodian is asked.
        role: The node's role.
        party: The node's party.
        kinds: What it asks for.

    Raises:
        ProtocolError: If it asks for nothing, or for one kind twice.
        VerificationError: If a kind is not for it (``key-not-for-node``).
    """
    # Step 1: a request
    if not kinds or len(set(kinds)) != len(kinds):
        raise ProtocolError(
            "a request for keys asks for nothing, or twice for one",
            code="key-request",
            expected="at least one kind, and each once",
            got=", ".join(kinds) or "none",
        )
    # Step 2: who asks whom
    parties = {it.name: it for it in plan.party}
    node, keeper = parties.get(party), parties.get(custodian_party)
    if node is None or keeper is None or node.role != role:
        raise _not_for(kinds[0], role=role, party=party, keeper=custodian_party)
    # Step 3: for what
    found: dict[KeyKind, str] = {}
    for kind in kinds:
        name = _key_of(kind, node=node, keeper=keeper)
        if name is None:
            raise _not_for(kind, role=role, party=party, keeper=custodian_party)
        found[kind] = name
    return found


def all_keys_for(
    plan: Plan, *, custodian_party: str, role: Role, party: str
) -> frozenset[str]:
    """Returns the names of all keys that a node may get from one custodian."""
    found: set[str] = set()
    for kind in get_args(KeyKind):
        with contextlib.suppress(VerificationError):
            found.update(
                keys_for(
                    plan,
                    custodian_party=custodian_party,
                    role=role,
                    party=party,
                    kinds=(kind,),
                ).values()
            )
    return frozenset(found)


def _key_of(kind: KeyKind, *, node: Party, keeper: Party) -> str | None:
    own = node.name == keeper.name
    if kind == "data":
        return node.data_key if own else None
    if kind == "vault":
        to_code = node.role == "recipient" and node.admit == "attested"
        return node.recipient if own and to_code else None
    if kind == "state-share":
        return keeper.state_share if node.has_state else None
    assert_never(kind)


def _not_for(
    kind: KeyKind, *, role: Role, party: str, keeper: str
) -> VerificationError:
    return VerificationError(
        "the plan names no such key for this node",
        code="key-not-for-node",
        expected=f"a kind that the custodian of {keeper!r} keeps for the {role}"
        f" {party!r}",
        got=kind,
        remedy="Ask for what the plan gives to this node, or sign a plan that does.",
    )
