"""What both sides of a challenge said, and what is signed or attested about it.

One transcript serves both meetings of a node: with its server, and with its party's
custodian, who has neither an admission CA nor an encryption key. Every signature and
every report data begins with a label of its own, so none can be taken for another; and
evidence names its prover, its reader, the run, the plan, both nonces and every key, so
it cannot be replayed, reflected, or diverted to another key, role, party, plan or run.
Written out in `docs/spec/handshake.md`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, NewType

import cbor2

from cloister.plan.plan import PlanHash, Role
from cloister.ratls.identity import Spki

Nonce = NewType("Nonce", bytes)  # 32 random bytes, used once
ReportData = NewType("ReportData", bytes)  # 64 bytes
FarRole = Literal["server", "custodian"]

_POSSESSION_LABEL = "cloister/transcript/2"
_IDENTITY_LABEL = "cloister/identity-proof/2"
_CUSTODIAN_LABEL = "cloister/custodian-proof/2"
_REPORT_LABEL = "cloister/report-data/2"
# The second half of report data: a certificate's evidence has zeros there, so neither
# kind can be passed off as the other.
_CHALLENGE_MARK = hashlib.sha256(b"cloister/challenge-evidence/2").digest()

_Item = str | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """Everything both sides said about themselves before any evidence.

    Attributes:
        run_id: The run.
        plan_hash: The plan.
        client_role: The client's claimed role.
        client_party: The client's claimed party.
        server_role: Whom the client meets: the run's server, or its own custodian.
        server_party: That one's party in the plan.
        client_nonce: The client's nonce.
        server_nonce: The other side's nonce.
        client_key: The client's TLS key.
        server_key: The other side's TLS key, as pinned.
        admission_key: The key of the server's admission CA; empty for a custodian.
        client_encryption_key: X25519, 32 bytes.
        server_encryption_key: X25519, 32 bytes; empty for a custodian.
    """

    run_id: str
    plan_hash: PlanHash
    client_role: Role
    client_party: str
    server_role: FarRole
    server_party: str
    client_nonce: Nonce
    server_nonce: Nonce
    client_key: Spki
    server_key: Spki
    admission_key: bytes
    client_encryption_key: bytes
    server_encryption_key: bytes

    def possession_bytes(self) -> bytes:
        """Returns what the client's TLS key signs to show that it is held."""
        return self._signed(_POSSESSION_LABEL)

    def identity_bytes(self) -> bytes:
        """Returns what the party's key signs for a client admitted by identity."""
        return self._signed(_IDENTITY_LABEL)

    def custodian_bytes(self) -> bytes:
        """Returns what the party's key signs for its custodian."""
        return self._signed(_CUSTODIAN_LABEL)

    def client_report_data(self) -> ReportData:
        """Returns what the client's evidence must carry."""
        return _report_data(
            [*self._client(), *self._server(), *self._shared()],
            self.client_encryption_key,
        )

    def server_report_data(self) -> ReportData:
        """Returns what the server's evidence must carry."""
        return _report_data(
            [*self._server(), *self._client(), *self._shared()],
            self.server_encryption_key,
        )

    def _signed(self, label: str) -> bytes:
        return cbor2.dumps(
            [
                label,
                *self._client(),
                *self._server(),
                *self._shared(),
                self.client_encryption_key,
                self.server_encryption_key,
            ],
            canonical=True,
        )

    def _client(self) -> list[_Item]:
        return [self.client_role, self.client_party]

    def _server(self) -> list[_Item]:
        return [self.server_role, self.server_party]

    def _shared(self) -> list[_Item]:
        return [
            self.run_id,
            self.plan_hash,
            self.client_nonce,
            self.server_nonce,
            self.client_key,
            self.server_key,
            self.admission_key,
        ]


def _report_data(items: list[_Item], encryption_key: bytes) -> ReportData:
    bound = cbor2.dumps([_REPORT_LABEL, *items, encryption_key], canonical=True)
    return ReportData(hashlib.sha256(bound).digest() + _CHALLENGE_MARK)
