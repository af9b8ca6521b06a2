"""Who may speak on the training port, until when, and through which round.

TLS is the gate and this table is the guard. A certificate alone is not enough, because
an open channel outlives it and a resumed session skips its check; so every call and
every message of a stream asks the table again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from cloister.errors import CloisterError, VerificationError
from cloister.plan.plan import Role
from cloister.ratls.epochs import Epoch, EpochMemory, key_digest
from cloister.ratls.identity import Spki
from cloister.ratls.proofs import Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A peer that proved itself: what it is, and that it is this party's node.

    Attributes:
        role: Its role.
        party: Its party; the warrant proved it.
        epoch: The warrant's epoch.
        tls_key: Its TLS key.
        encryption_key: X25519, 32 bytes.
        standing: The verdict on its evidence, or that it is admitted by identity.
    """

    role: Role
    party: str
    epoch: int
    tls_key: Spki
    encryption_key: bytes
    standing: Standing

    @property
    def node(self) -> Epoch:
        """Which of its party's nodes it is."""
        return Epoch(self.epoch, key_digest(self.tls_key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """One line of the table.

    Attributes:
        peer: Who.
        expires_at: When the admission lapses.
        last_round: The last round it is good for.
        quote: The evidence, to be judged again; None for an identity.
        report_data: What the evidence must carry.
        withdrawn: Why it ended before its time; None while it has not.
    """

    peer: Peer
    expires_at: datetime
    last_round: int
    quote: bytes | None = field(repr=False)
    report_data: bytes
    withdrawn: str | None = None


class AdmissionTable:
    """Which TLS keys may speak on the training port, and for whom.

    Args:
        clock: The server's time.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._by_key: dict[Spki, Admitted] = {}
        # The key that each party's node was admitted under last.
        self._keys: dict[tuple[Role, str], Spki] = {}
        self._epochs = EpochMemory()
        self._round = 1

    @property
    def round(self) -> int:
        """The round that runs now; 1 before the first."""
        return self._round

    def advance(self, round_number: int) -> None:
        """Notes the round that runs now; rounds never go back."""
        self._round = max(self._round, round_number)

    def check_epoch(self, role: Role, party: str, epoch: Epoch) -> None:
        """Refuses a node that is not its party's newest.

        Raises:
            VerificationError: If it is not.
        """
        self._epochs.check(role, party, epoch)

    def learn(self, role: Role, party: str, epoch: Epoch) -> None:
        """Remembers a node that a server before this one admitted; admits nobody.

        Raises:
            VerificationError: If another key of that epoch is known.
        """
        self._epochs.learn(role, party, epoch)

    def admit(self, admitted: Admitted) -> None:
        """Admits a peer, or renews it; a former node of its party is out from now on.

        Raises:
            VerificationError: If a newer node was admitted meanwhile.
        """
        peer = admitted.peer
        self._epochs.note(peer.role, peer.party, peer.node)
        whose = (peer.role, peer.party)
        key = self._keys.get(whose)
        former = None if key is None else self._by_key.get(key)
        # A key may be another party's by now, who showed it later.
        if former is not None and (former.peer.role, former.peer.party) == whose:
            del self._by_key[former.peer.tls_key]
        self._by_key[peer.tls_key] = admitted
        self._keys[whose] = peer.tls_key

    def withdraw(self, admitted: Admitted, error: CloisterError) -> None:
        """Ends an admission before its time, unless it was renewed meanwhile."""
        key = admitted.peer.tls_key
        if self._by_key.get(key) is admitted:
            self._by_key[key] = replace(admitted, withdrawn=f"{error.code}: {error}")

    def check(self, key: Spki) -> Peer:
        """Returns the peer admitted under `key`, now.

        Raises:
            VerificationError: If there is none, or its admission has lapsed.
        """
        admitted = self._by_key.get(key)
        if admitted is None:
            raise VerificationError(
                "the caller's key is not admitted",
                code="not-admitted",
                expected="a key in the admission table",
                got=f"key {hashlib.sha256(key).hexdigest()[:16]}",
                remedy="Enrol first; a newer node of the same party ends an older one.",
            )
        if admitted.withdrawn is not None:
            raise VerificationError(
                f"the admission of {admitted.peer.party!r} was withdrawn",
                code="admission-withdrawn",
                expected="evidence that the policy still accepts",
                got=admitted.withdrawn[:300],
                remedy="Attest again, after what the evidence lacks was mended.",
            )
        if self._clock() >= admitted.expires_at:
            raise _lapsed(
                admitted.peer, f"use before {admitted.expires_at:%Y-%m-%d %H:%M:%SZ}"
            )
        if self._round > admitted.last_round:
            raise _lapsed(admitted.peer, f"use up to round {admitted.last_round}")
        return admitted.peer

    def admitted(self) -> tuple[Admitted, ...]:
        """Returns every line, lapsed ones included, in order of admission."""
        return tuple(self._by_key.values())

    def parties(self) -> tuple[Peer, ...]:
        """Returns every admitted peer, lapsed ones included, in order of admission."""
        return tuple(admitted.peer for admitted in self._by_key.values())


def _lapsed(peer: Peer, expected: str) -> VerificationError:
    return VerificationError(
        f"the admission of {peer.party!r} has lapsed",
        code="admission-lapsed",
        expected=expected,
        remedy="Attest again.",
    )
