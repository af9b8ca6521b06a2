"""The rows of a custodian's database, each read and written whole.

Every row carries a SHA-256 of its own values, and one head row carries the exclusive-or
of all of these. So a row that a disk changed, lost or doubled is found. None of this is
a signature: who may write the file can also make these hashes anew.

Here: what rows there are, and what stands in each. `register_tables` reads and writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import cbor2

from cloister.custody.register_errors import damaged
from cloister.plan.plan import PlanHash, Role
from cloister.ratls.mark import Mark
from cloister.storage.keys import KeyKind

_LABEL = "cloister/register-row/2"
NO_ROWS = bytes(32)

PlanState: TypeAlias = Literal["active", "withdrawn", "superseded"]
KeyState: TypeAlias = Literal["active", "retired", "revoked"]
Value: TypeAlias = str | int | bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """A plan this party consented to, and what became of that.

    Attributes:
        plan_hash: The plan.
        run_id: Its run.
        plan: The plan's TOML text, as it was signed.
        consent: The party's consent, as its file holds it.
        state: Whether nodes still get warrants under it.
        at: Unix time of the newest change.
    """

    table: ClassVar[str] = "consents"
    plan_hash: PlanHash
    run_id: str
    plan: bytes = dataclasses.field(repr=False)
    consent: bytes = dataclasses.field(repr=False)
    state: PlanState
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WarrantRow:
    """The newest warrant of one epoch: of one node process.

    Attributes:
        run_id: The run.
        role: The role of the node.
        party: The party, always this custodian's.
        epoch: Counts the node processes of this run, role and party, from 1.
        tls_key: SubjectPublicKeyInfo of the node's TLS key.
        encryption_key: To which keys are sealed for the node, X25519.
        plan_hash: The plan it trains under.
        issued_at: Unix time.
        expires_at: Unix time.
    """

    table: ClassVar[str] = "warrants"
    run_id: str
    role: Role
    party: str
    epoch: int
    tls_key: bytes
    encryption_key: bytes
    plan_hash: PlanHash
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkRow:
    """How far a run had come when a node last said so.

    Attributes:
        run_id: The run.
        role: The role of the node that deposited it.
        party: The party, always this custodian's.
        plan_hash: The plan that this node worked under; in the log of that plan's run
            lies the audit head.
        round: See `Mark`.
        state: See `Mark`.
        server_epoch: See `Mark`.
        server_key: See `Mark`.
        audit_head: See `Mark`.
        rewound: 1 after an operator let the run go back: then round, state and audit
            head count no more, and which server is the newest still does. Else 0.
        at: Unix time of the deposit.
    """

    table: ClassVar[str] = "marks"
    run_id: str
    role: Role
    party: str
    plan_hash: PlanHash
    round: int
    state: bytes
    server_epoch: int
    server_key: bytes
    audit_head: bytes | None
    rewound: int
    at: int

    @property
    def mark(self) -> Mark:
        """The row as the mark it holds."""
        return Mark(
            round=self.round,
            state=self.state,
            server_epoch=self.server_epoch,
            server_key=self.server_key,
            audit_head=self.audit_head,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRow:
    """The newest node of another party that came for a share of a state key.

    Attributes:
        run_id: The run.
        role: The role of the node.
        party: The other party.
        epoch: Of its warrant, which its own custodian signed.
        tls_key: SubjectPublicKeyInfo of the node's TLS key.
        encryption_key: To which keys are sealed for the node, X25519.
        plan_hash: The plan it trains under.
        issued_at: Unix time.
        expires_at: Unix time.
    """

    table: ClassVar[str] = "foreign_warrants"
    run_id: str
    role: Role
    party: str
    epoch: int
    tls_key: bytes
    encryption_key: bytes
    plan_hash: PlanHash
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """A key of the party, sealed; or what is left of one that was revoked.

    Attributes:
        key_id: As plans name it.
        kind: What it is for.
        label: The owner's word for it; a key and those that replaced it share it.
        state: A retired key was replaced; plans that name it still get it.
        sealed: The key under a key of the keyring; None once it was revoked.
        created_at: Unix time.
        at: Unix time of the newest change.
    """

    table: ClassVar[str] = "keys"
    key_id: str
    kind: KeyKind
    label: str
    state: KeyState
    sealed: bytes | None = dataclasses.field(repr=False)
    created_at: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRow:
    """One record of the custodian's audit, never changed.

    Attributes:
        seq: Its number, from 0.
        previous: The head before it, hex.
        at_ms: Unix time in milliseconds.
        kind: What happened.
        subject: To whom or what, to find it by.
        payload: What the party signs when it is shown (`storage.audit_chain`).
    """

    table: ClassVar[str] = "records"
    seq: int
    previous: str
    at_ms: int
    kind: str
    subject: str
    payload: bytes = dataclasses.field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The one row about the database itself.

    Attributes:
        party: Whose custodian keeps it.
        changes: Counts transactions that changed something.
        newest_at: The greatest time, in Unix seconds, that was ever written.
        generation: Which key of the keyring seals the keys.
        rows: Exclusive-or of the hashes of all other rows.
    """

    table: ClassVar[str] = "register"
    party: str
    changes: int
    newest_at: int
    generation: int
    rows: bytes


Row: TypeAlias = PlanRow | WarrantRow | MarkRow | ForeignRow | KeyRow | RecordRow
AnyRow = TypeVar("AnyRow", PlanRow, WarrantRow, MarkRow, ForeignRow, KeyRow, RecordRow)
Stored = TypeVar(
    "Stored", PlanRow, WarrantRow, MarkRow, ForeignRow, KeyRow, RecordRow, Head
)


def first_head(party: str) -> tuple[Value, ...]:
    """Returns the columns of the head row of an empty register."""
    head = Head(party=party, changes=0, newest_at=0, generation=1, rows=NO_ROWS)
    return (1, *values_of(head), row_hash(head))


def row_hash(row: Row | Head) -> bytes:
    """Returns the SHA-256 of a row's table and values."""
    form = [_LABEL, row.table, *values_of(row)]
    return hashlib.sha256(cbor2.dumps(form, canonical=True)).digest()


def checked(kind: type[Stored], stored: Sequence[Any]) -> Stored:
    """Returns the row in the columns of a table, if its hash is right.

    Raises:
        StorageError: If it is not.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    *values, digest = stored
    if len(values) != len(names):
        raise damaged(f"other columns in {kind.table!r}")
    row = kind(**dict(zip(names, values, strict=True)))
    if row_hash(row) != digest:
        raise damaged(f"a changed row in {kind.table!r}")
    return row


def values_of(row: Row | Head) -> tuple[Value, ...]:
    """Returns the values of a row, in the order of its columns."""
    return tuple(getattr(row, field.name) for field in dataclasses.fields(row))


def xor(first: bytes, second: bytes) -> bytes:
    """Returns the exclusive-or of two hashes."""
    return bytes(a ^ b for a, b in zip(first, second, strict=True))
