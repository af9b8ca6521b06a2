"""Where a node's own quotes come from: one module or room for each kind of machine."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from cloister.attestation.reports import Tee


class Platform(Protocol):
    """A machine that vouches for the code it runs."""

    @property
    def simulated(self) -> bool:
        """Whether the quotes come from software under a development root."""
        ...

    @property
    def tee(self) -> Tee:
        """The kind of trusted execution environment quoted."""
        ...

    @property
    def name(self) -> str:
        """Name for people and logs."""
        ...

    def quote(self, report_data: bytes) -> bytes:
        """Returns a fresh quote over exactly 64 bytes of report data.

        May be called from any thread.

        Raises:
            PlatformError: If the machine cannot quote.
            ValueError: If `report_data` is not 64 bytes; a bug of the caller.
        """
        ...


@runtime_checkable
class SealingPlatform(Protocol):
    """A machine that gives the code it runs a key that no other code on it gets.

    For what this code is to read again on this machine after a restart, and nobody
    else anywhere. Whether a machine can do it is known when it is asked.
    """

    def sealing_key(self) -> bytes:
        """Returns 32 bytes, the same each time for this code on this machine.

        Raises:
            PlatformError: If the machine has none to give; code `sealing-unavailable`.
        """
        ...
