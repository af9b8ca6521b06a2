"""A run's audit log for tests: a real one in a file, or lists in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.support.audit import RecordedDoor
from tests.support.custodians import text_of
from tests.support.federation_in_memory import START, Federation

from cloister.errors import CloisterError, StorageError
from cloister.federation.audit_log import AuditLog
from cloister.federation.audit_records import (
    AnyEntry,
    Participant,
    RoundCompleted,
    parse_entry,
)
from cloister.federation.audit_start import open_audit
from cloister.plan.consent import format_consent, sign_consent
from cloister.plan.plan import Plan
from cloister.ratls.admission_table import Peer
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.storage.audit_chain import Link, parse_links

AUDIT_FILE = "audit.jsonl"


def open_log_of(
    node: Node,
    directory: Path,
    *,
    federation: Federation | None = None,
    known: Mark | None = None,
) -> AuditLog:
    """Opens a server's audit log in a run's directory, which is made if absent.

    Args:
        node: The server's node.
        directory: The run's directory.
        federation: Signs the consents; nobody's are in the log without it.
        known: The mark that the server's custodian has.
    """
    directory.mkdir(parents=True, exist_ok=True)
    return open_audit(
        directory / AUDIT_FILE,
        node=node,
        consents=consents_of(federation, node.plan) if federation else (),
        plan_text=text_of(node.plan),
        known=known,
        known_under=node.plan_hash,
    )


def consents_of(federation: Federation, plan: Plan) -> list[bytes]:
    """Returns every party's consent to a plan, in plan order."""
    return [
        format_consent(
            sign_consent(plan, party=p.name, key=federation.keys[p.name], at=START)
        )
        for p in plan.party
    ]


def links_of(directory: Path) -> list[Link]:
    """Returns the records in a run's directory, each in its place."""
    with (directory / AUDIT_FILE).open("rb") as file:
        return list(parse_links(file))


def entries_of(directory: Path) -> list[AnyEntry]:
    """Returns what the records in a run's directory say."""
    return [parse_entry(link.entry) for link in links_of(directory)]


def kinds_of(directory: Path) -> list[str]:
    """Returns the kind of every record in a run's directory."""
    return [type(entry).__name__ for entry in entries_of(directory)]


def participant(party: str) -> Participant:
    """Returns a party's part in a round, by nobody in particular."""
    return Participant(
        party=party,
        tls_key_sha256=hashlib.sha256(party.encode()).hexdigest(),
        countersignature=b"signed",
    )


class RecordedRounds:
    """Keeps rounds in memory; each changes the head.

    Attributes:
        rounds: What was recorded.
    """

    def __init__(self) -> None:
        self.rounds: list[RoundCompleted] = []

    @property
    def head(self) -> bytes:
        return hashlib.sha256(repr(self.rounds).encode()).digest()

    @property
    def durable_head(self) -> bytes:
        return self.head

    def round_completed(
        self,
        number: int,
        *,
        head: bytes,
        participants: tuple[Participant, ...],
        state: bytes | None,
    ) -> None:
        self.rounds.append(
            RoundCompleted(
                round=number,
                head=head.hex(),
                participants=participants,
                state=None if state is None else state.hex(),
            )
        )

    def sync(self) -> None:
        """Does nothing: what is in memory is as durable as it gets."""


class RecordedRun(RecordedDoor, RecordedRounds):
    """Keeps all of a run in memory that a server's ports and rounds record.

    It introduces nobody, and so takes servers that would refuse themselves.

    Attributes:
        calls: Party and code of every refused call of an admitted node.
        full: Whether no more calls can be recorded.
    """

    def __init__(self) -> None:
        RecordedDoor.__init__(self)
        RecordedRounds.__init__(self)
        self.calls: list[tuple[str, str]] = []
        self.full = False

    def call_refused(self, peer: Peer, error: CloisterError) -> None:
        if self.full:
            raise StorageError("no room", code="audit-unwritable")
        self.calls.append((peer.party, error.code))
