"""What one side of a handshake may take up of the other: time, and places.

Before a peer has shown who it is, it is a stranger, and strangers come in floods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long is waited for a peer, and for how many at once.

    Attributes:
        stranger_seconds: For one message of a stranger. It needs no time to think: two
            messages, one signature.
        handshake_seconds: For a whole handshake, quotes and collateral included. Who
            takes longer holds a place for nothing.
        at_once: How many are served at once; each takes some 100 to 160 KiB
            (`docs/spec/custodian.md` has the measurement).
        enrolments_a_minute: For the nodes of one party, at a server's enrolment port.
            Each is a record in the run's audit.
    """

    stranger_seconds: float = 10.0
    handshake_seconds: float = 30.0
    at_once: int = 2048
    enrolments_a_minute: int = 30

    def __post_init__(self) -> None:
        for limit in (
            self.stranger_seconds,
            self.handshake_seconds,
            self.at_once,
            self.enrolments_a_minute,
        ):
            if not 0 < limit < math.inf:
                raise ValueError("a limit that limits nothing, or everything")


USUAL_LIMITS = Limits()
