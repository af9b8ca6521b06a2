"""Which node of a party is the newest: epochs never go back, and one epoch is one key.

A custodian gives each node of its party the next epoch, so a second server from the
same state, or a former worker that comes back, is known by it. Whoever meets a node
remembers here what it saw; a custodian remembers it for longer than a process lives.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass

from cloister.errors import VerificationError
from cloister.plan.plan import Role


@dataclass(frozen=True, slots=True)
class Epoch:
    """One node of a party: its number, and the SHA-256 of its public TLS key."""

    number: int
    key: bytes


def key_digest(spki: bytes) -> bytes:
    """Returns the SHA-256 that stands for a public TLS key in epochs and marks."""
    return hashlib.sha256(spki).digest()


class EpochMemory:
    """The newest epoch seen of each role and party.

    All methods may be called from any thread: evidence is judged in threads, and what
    is found there must not be lost against what the event loop learns meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[tuple[Role, str], Epoch] = {}

    def newest(self) -> dict[tuple[Role, str], Epoch]:
        """Returns the newest node of each role and party, as it is now."""
        with self._lock:
            return dict(self._newest)

    def check(self, role: Role, party: str, epoch: Epoch) -> None:
        """Refuses a node that is older than one seen, or that shares its epoch.

        Raises:
            VerificationError: If it is not the newest node known, or a newer one.
        """
        with self._lock:
            self._check(role, party, epoch)

    def learn(self, role: Role, party: str, epoch: Epoch) -> None:
        """Remembers a node that another witness met, if that is news.

        A witness may know less than this memory: an older node is no contradiction.

        Raises:
            VerificationError: If it met another key of the newest epoch.
        """
        with self._lock:
            newest = self._newest.get((role, party))
            if newest is None or epoch.number >= newest.number:
                self._note(role, party, epoch)

    def note(self, role: Role, party: str, epoch: Epoch) -> None:
        """Remembers a node that was authenticated.

        Raises:
            VerificationError: If it is not the newest node known, or a newer one.
        """
        with self._lock:
            self._note(role, party, epoch)

    def _note(self, role: Role, party: str, epoch: Epoch) -> None:
        self._check(role, party, epoch)
        self._newest[role, party] = epoch

    def _check(self, role: Role, party: str, epoch: Epoch) -> None:
        newest = self._newest.get((role, party))
        if newest is None or epoch.number > newest.number or epoch == newest:
            return
        forked = epoch.number == newest.number
        raise VerificationError(
            f"the {role} is not its party's newest node",
            code="epoch-forked" if forked else "epoch-old",
            expected=f"the key {newest.key.hex()[:16]} of epoch {newest.number} of"
            f" {party!r}"
            if forked
            else f"epoch {newest.number} of {party!r} or a newer one",
            got=f"the key {epoch.key.hex()[:16]} of epoch {epoch.number}",
            remedy="Two nodes run for one party; stop the older, or start anew with a"
            " fresh warrant.",
        )
