"""Loopback addresses nobody uses at this moment."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from cloister.plan.site import Address


def free_addresses(count: int) -> list[Address]:
    """Returns so many different addresses."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for it in sockets:
            it.bind(("127.0.0.1", 0))
        return [Address("127.0.0.1", it.getsockname()[1]) for it in sockets]
