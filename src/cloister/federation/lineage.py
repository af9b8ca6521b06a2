"""Whether a server's state and its audit log are of one history.

Both lie on the host's disk, and each may be put back, or come from another beginning of
the run, without the other. A server that went on from two that do not belong together
would train to the end, and nobody could audit what it made.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cloister.errors import VerificationError
from cloister.federation.audit_past import Past
from cloister.plan.plan import Plan
from cloister.storage.mirror.subject import Kept

# A head as counters: a manifest has numbers of 64 bits, and a name for each.
_NAMES: Final = tuple(f"head-{number}" for number in range(4))
_FORM: Final = struct.Struct(">4Q")
_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})

_REMEDY = (
    "Put the state and the log back that belong together. To begin again, give the"
    " plan a new run; or have every party's operator run `cloister custodian rewind`,"
    " and start with --fresh, which sets both aside."
)


def head_counters(head: bytes | None) -> Mapping[str, int]:
    """Returns what is sealed with a state, so that its history is known.

    Args:
        head: The head of the log that went out with the model of its last round, 32
            bytes; None of a state before the first round.
    """
    if head is None:
        return _NOTHING
    return MappingProxyType(dict(zip(_NAMES, _FORM.unpack(head), strict=True)))


def head_of(kept: Kept) -> bytes | None:
    """Returns the head that was sealed with a state; None if none was."""
    counters = kept.counters
    if any(name not in counters for name in _NAMES):
        return None
    return _FORM.pack(*(counters[name] for name in _NAMES))


def check_log(kept: Kept, plan: Plan, past: Past) -> None:
    """Refuses a log that is not the one of a state's own history.

    Steps: (1) the log has all rounds that the state has: a state is durable after its
    log is, so another one was cut, or taken away; (2) if it states the state of that
    round, it is this one; (3) its record of that round has the head that was sealed
    with the state. A log begins where the plan does, and has no record of that round.

    Args:
        kept: The state that the server goes on from.
        plan: The plan.
        past: What the log holds.

    Raises:
        VerificationError: If any step fails.
    """
    start = 0 if plan.predecessor is None else plan.predecessor.round
    completed = start if past.completed is None else past.completed
    # Step 1: cut
    if completed < kept.round:
        raise VerificationError(
            "the log lacks rounds that this server's state has",
            code="audit-cut",
            expected=f"{kept.round} rounds",
            got=f"{completed} rounds",
            remedy=_REMEDY,
        )
    # Step 2: another state
    stated = past.states.get(kept.round)
    if stated is not None and stated != kept.digest.hex():
        raise VerificationError(
            f"the log states another state of round {kept.round} than this server has",
            code="audit-state",
            expected=stated,
            got=kept.digest.hex(),
            remedy=_REMEDY,
        )
    # Step 3: another way to the same number of rounds
    if kept.round == start:
        return
    recorded, head = past.sent.get(kept.round), head_of(kept)
    if head is None or recorded != head.hex():
        raise VerificationError(
            f"the log has another round {kept.round} than this server's state",
            code="audit-state",
            expected=f"the head {recorded or 'of a record'} with its model",
            got=head.hex() if head else "a state that names none",
            remedy=_REMEDY,
        )
