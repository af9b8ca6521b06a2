"""A custodian that met nodes and released keys, in its register; all evidence is real.

Time stands still but for what is said, so the same story has the same records.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.audit_signing import PartySigner, log_of
from tests.support.custodians import text_of
from tests.support.federation_in_memory import START, WARRANT_LIFE, Federation
from tests.support.registers import transcript_of

from cloister.custody.audit_export import export_audit
from cloister.custody.audit_verification import (
    CustodianAuditReport,
    verify_custodian_audit,
)
from cloister.custody.register import Register
from cloister.errors import VerificationError
from cloister.plan.consent import sign_consent
from cloister.plan.keys import format_party_key
from cloister.ratls.challenge import EvidenceProof
from cloister.ratls.identity import Spki, new_identity
from cloister.ratls.node import Node
from cloister.ratls.testimony import Shown, shown
from cloister.ratls.transcript import Transcript
from cloister.storage.audit_chain import Link, next_link, parse_links

PARTY = "alice"
Entry: TypeAlias = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Story:
    """A custodian of alice's at work.

    Attributes:
        federation: Whose plan it consented to.
        register: What it remembers.
        at: Its time.
        nodes: The nodes that it met, by party; the newest of each.
        tls_key: Its own TLS key.
    """

    federation: Federation
    register: Register
    at: datetime = START
    nodes: dict[str, Node] = field(default_factory=dict)
    tls_key: Spki = field(default_factory=lambda: new_identity().tls_spki)

    @property
    def key(self) -> Ed25519PrivateKey:
        return self.federation.keys[PARTY]

    def consent(self) -> None:
        plan = self.federation.plan
        consent = sign_consent(plan, party=PARTY, key=self.key, at=self.at)
        self.register.adopt(text_of(plan), consent, at=self.at)

    def transcript(self, party: str) -> Transcript:
        """Returns what the newest node of a party says here."""
        node = self.nodes[party]
        there = transcript_of(
            self.federation.plan, node.identity.tls_spki, party=party, at_party=PARTY
        )
        return dataclasses.replace(
            there,
            server_key=self.tls_key,
            client_encryption_key=node.identity.encryption_public,
        )

    def shown(self, party: str) -> Shown:
        """Returns what the newest node of a party shows here."""
        node, transcript = self.nodes[party], self.transcript(party)
        proof = node.prover.prove(transcript)
        collateral = None
        if isinstance(proof, EvidenceProof):
            collateral = node.appraiser.fetch_collateral(
                proof.quote, expected_report_data=transcript.client_report_data()
            )
        warrant = None if party == PARTY else node.warrant.current
        return shown(transcript, warrant=warrant, proof=proof, collateral=collateral)

    def meet(self, party: str, *, epoch: int = 1) -> None:
        """Has a new node of a party prove itself."""
        self.nodes[party] = self.federation.node(party, epoch=epoch)
        if party == PARTY:
            self.renew()
            return
        it = self.shown(party)
        self.register.note_foreign_warrant(
            it.testimony, collateral=it.collateral, at=self.at
        )

    def renew(self) -> None:
        """Has alice's newest node prove itself again."""
        it = self.shown(PARTY)
        self.register.grant(
            it.testimony, collateral=it.collateral, at=self.at, life=WARRANT_LIFE
        )

    def refuse(self, party: str) -> None:
        it = self.shown(party)
        self.register.note_refusal(
            it.testimony,
            collateral=it.collateral,
            error=VerificationError("no", code="no"),
            at=self.at,
        )

    def release(self, party: str, *key_ids: str) -> None:
        self.register.release(self.transcript(party), key_ids=key_ids, at=self.at)

    def later(self, by: timedelta) -> None:
        self.at += by

    def log(self) -> bytes:
        """Returns the exported log."""
        return b"".join(export_audit(self.register, key=self.key))

    def verify(self, log: bytes | None = None) -> CustodianAuditReport:
        """Verifies the log, or another one that is said to be it."""
        log = self.log() if log is None else log
        return verify_log(log, key=format_party_key(self.key))

    def verify_remade(
        self, change: Callable[[list[Entry]], None]
    ) -> CustodianAuditReport:
        """Verifies the log after its own party changed it and signed it anew."""
        return self.verify(remade(self.log(), self.key, change))


def remade(
    log: bytes, key: Ed25519PrivateKey, change: Callable[[list[Entry]], None]
) -> bytes:
    """Returns a log whose entries were changed and which the party signed anew."""
    before = list(parse_links(io.BytesIO(log)))
    entries: list[Entry] = [msgspec.json.decode(link.entry) for link in before]
    times = [link.at_ms for link in before]
    change(entries)
    signer, links = PartySigner(key), list[Link]()
    for number, entry in enumerate(entries):
        links.append(
            next_link(
                links[-1] if links else None,
                entry=msgspec.json.encode(entry),
                at_ms=times[min(number, len(times) - 1)],
                signer=signer,
            )
        )
    return log_of(links)


def verify_log(log: bytes, *, key: str | None) -> CustodianAuditReport:
    """Verifies a log as an auditor does who has nothing else but the key."""
    return verify_custodian_audit(parse_links(io.BytesIO(log)), key=key)
