"""Loopback addresses nobody uses at this moment.

Below the range from which the system gives ports away: what nobody listens at now is
then not taken by somebody's outgoing connection before the test listens there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from contextlib import ExitStack

from cloister.plan.site import Address

_FIRST, _LAST = 10_000, 32_000
# Suites that run side by side begin at different places.
_ports = itertools.cycle(range(_FIRST, _LAST))
for _ in range(os.getpid() * 97 % (_LAST - _FIRST)):
    next(_ports)


def free_addresses(count: int) -> list[Address]:
    """Returns so many different addresses."""
    found: list[Address] = []
    with ExitStack() as stack:
        while len(found) < count:
            port = next(_ports)
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(Address("127.0.0.1", port))
    return found
