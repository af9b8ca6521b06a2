"""Marks: how far a run has come, as a worker saw it, kept by its party's custodian.

A mark outlives the node that deposits it. A server that comes back with an older state,
or with another state of the same round, contradicts it. So does one whose audit log
lacks the mark's head: the log was cut, or it is another one. The mark is what a node
says of itself; it is worth as much as the evidence the custodian verified before.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Digest32 = Annotated[bytes, Meta(min_length=32, max_length=32)]  # SHA-256


class Mark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a run has come, and under which server.

    Attributes:
        round: Rounds completed; 0 before the first.
        state: SHA-256 of the state after that round.
        server_epoch: Epoch of the server's warrant.
        server_key: SHA-256 of the SubjectPublicKeyInfo of the server's TLS key.
        audit_head: Head of the server's audit log (`ratls.audit_key`) when the round's
            model went out, or later: a server deposits its mark again as its log
            grows, and the last one has the final head. Servers and workers always
            state it; None only in marks that no run made.
    """

    round: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    state: Digest32
    server_epoch: Annotated[int, Meta(ge=1, le=2**53)]
    server_key: Digest32
    audit_head: Digest32 | None = None
