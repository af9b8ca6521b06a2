"""One deadline for a whole HTTPS exchange.

Timeouts of sockets begin anew with every byte, so that a server which sends one at a
time could hold its caller for days. Here the connection itself is ended.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from typing import Any, Self

# httpcore's documented name for the step that yields the encrypted connection.
_TLS_ESTABLISHED = "connection.start_tls.complete"


class Deadline:
    """Ends the connection that it is shown when its time is up; a context manager.

    Before there is a connection, connecting and the handshake have timeouts of their
    own, which are whole ones.

    Args:
        seconds: From entering the context.

    Attributes:
        seconds: The same.
        expired: Whether the time was up before the context was left.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.expired = False
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Takes the connection; httpcore calls this at each of its steps."""
        if event != _TLS_ESTABLISHED:
            return
        with self._lock:
            self._connection = info["return_value"].get_extra_info("socket")
            if self.expired:
                self._end()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            self._end()

    def _end(self) -> None:
        if self._connection is not None:
            # The plain method: the TLS object's own is another thread's to touch.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)
