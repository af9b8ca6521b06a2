"""A party's register, and plans, keys and marks to fill it with.

All of it is the same each time. No clock is looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.plan_tree import plan_tree, put, toml_of

from cloister.custody.register import Register
from cloister.custody.register_rows import MarkRow, PlanRow, WarrantRow
from cloister.custody.register_tables import Rows
from cloister.plan.amendment import successor_text
from cloister.plan.consent import Consent, sign_consent
from cloister.plan.keys import format_party_key
from cloister.plan.plan import Plan, PlanHash, parse_plan, plan_hash
from cloister.ratls.challenge import IdentityProof
from cloister.ratls.identity import SPKI_BYTES, Spki
from cloister.ratls.mark import Mark
from cloister.ratls.testimony import Testimony, said
from cloister.ratls.transcript import Nonce, Transcript
from cloister.ratls.warrant import WarrantTerms, sign_warrant

START = datetime(2027, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LIFE = timedelta(hours=12)
PARTY = "alice"
KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
    for name in ("aggregator", "alice", "bob")
}

Content: TypeAlias = (
    "tuple[tuple[PlanRow, ...], tuple[WarrantRow, ...], tuple[MarkRow, ...]]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPlan:
    """A plan, its text, and a party's consent to it."""

    text: bytes
    plan: Plan
    consent: Consent

    @property
    def hash(self) -> PlanHash:
        return plan_hash(self.plan)


def signed_plan(
    *, run: str = "a", seed: int = 7, party: str = PARTY, at: datetime = START
) -> SignedPlan:
    """Returns a plan that the party signed; runs and seeds make other plans."""
    tree = plan_tree(keys={name: format_party_key(key) for name, key in KEYS.items()})
    put(tree, ("plan", "run"), run)
    put(tree, ("training", "seed"), seed)
    return signed(toml_of(tree), party=party, at=at)


def successor_of(before: SignedPlan, mark: Mark, *, at: datetime = START) -> SignedPlan:
    """Returns an amendment of a plan that goes on from a mark, signed."""
    text = successor_text(before.text, before.plan, state=mark.state, round=mark.round)
    return signed(text.encode(), party=before.consent.party, at=at)


def signed(text: bytes, *, party: str = PARTY, at: datetime = START) -> SignedPlan:
    """Returns the plan in `text` with the consent of a party."""
    plan = parse_plan(text)
    consent = sign_consent(plan, party=party, key=KEYS[party], at=at)
    return SignedPlan(text=text, plan=plan, consent=consent)


def key_of_node(number: int) -> Spki:
    """Returns what stands for the TLS key of a node; each number is another node."""
    return Spki(hashlib.shake_256(b"node %d" % number).digest(SPKI_BYTES))


def digest_of(name: str) -> bytes:
    """Returns 32 bytes for a name, such as a state's."""
    return hashlib.sha256(name.encode()).digest()


def mark_of(
    completed: int, state: str = "x", *, epoch: int = 1, server: str = "server"
) -> Mark:
    """Returns a mark, its digests made of names."""
    return Mark(
        round=completed,
        state=digest_of(f"{state} {completed}"),
        server_epoch=epoch,
        server_key=digest_of(server),
    )


def grant(
    register: Register,
    plan: SignedPlan,
    node: int,
    *,
    at: datetime = START,
    life: timedelta = LIFE,
) -> WarrantTerms:
    """Returns the terms that a node of a number gets."""
    testimony = shown_by(plan.plan, key_of_node(node), party=register.party)
    return register.grant(testimony, collateral=None, at=at, life=life)


def paced(register: Register) -> datetime:
    """Returns a time at which the register has room for one warrant more."""
    return START + 61 * len(register.warrants()) * MINUTE / 60


def shown_by(
    plan: Plan, key: Spki, *, party: str, at_party: str | None = None
) -> Testimony:
    """Returns what stands for what a node showed; nothing in it holds."""
    return Testimony(
        said=said(transcript_of(plan, key, party=party, at_party=at_party or party)),
        warrant=None,
        proof=IdentityProof(signature=bytes(64)),
        collateral=None,
    )


def transcript_of(plan: Plan, key: Spki, *, party: str, at_party: str) -> Transcript:
    """Returns what a node and a custodian said; the nonces are always the same."""
    return Transcript(
        run_id=plan.run_id,
        plan_hash=plan_hash(plan),
        client_role=plan.find_party(party).role,
        client_party=party,
        server_role="custodian",
        server_party=at_party,
        client_nonce=Nonce(bytes(32)),
        server_nonce=Nonce(bytes(32)),
        client_key=key,
        server_key=key_of_node(0),
        admission_key=b"",
        client_encryption_key=digest_of("encryption"),
        server_encryption_key=b"",
    )


def meet(
    register: Register,
    plan: SignedPlan,
    node: int,
    *,
    epoch: int,
    life: timedelta = LIFE,
    at: datetime = START,
) -> WarrantTerms:
    """Notes the node of a number and an epoch as bob's, warranted at the start."""
    key, party = key_of_node(node), "bob"
    terms = WarrantTerms(
        run_id=plan.plan.run_id,
        plan_hash=plan.hash,
        role=plan.plan.find_party(party).role,
        party=party,
        tls_key=key,
        epoch=epoch,
        issued_at=int(START.timestamp()),
        expires_at=int((START + life).timestamp()),
    )
    showed = msgspec.structs.replace(
        shown_by(plan.plan, key, party=party, at_party=register.party),
        warrant=sign_warrant(terms, KEYS[party]),
    )
    return register.note_foreign_warrant(showed, collateral=None, at=at)


def release(
    register: Register,
    plan: SignedPlan,
    node: int,
    *,
    party: str = PARTY,
    key_ids: tuple[str, ...] = ("sha256:" + 64 * "a",),
    at: datetime = START,
) -> int:
    """Releases keys to the node of a number; returns its epoch."""
    said_there = transcript_of(
        plan.plan, key_of_node(node), party=party, at_party=register.party
    )
    return register.release(said_there, key_ids=key_ids, at=at)


def deposit(
    register: Register,
    plan: SignedPlan,
    node: int,
    mark: Mark,
    *,
    at: datetime = START,
) -> Mark:
    """Deposits a mark as the node of a number."""
    return register.deposit(plan.hash, tls_key=key_of_node(node), mark=mark, at=at)


def content_of(register: Register) -> Content:
    """Returns all that a register shows."""
    return register.plans(), register.warrants(), register.marks()


def content_at(path: Path) -> Content:
    """Returns all that the register in a file shows."""
    with Register.open(path) as register:
        return content_of(register)


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """Yields the database without any rule of ours; commits each statement."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def forge(path: Path, change: Callable[[Rows], None]) -> None:
    """Changes rows as somebody would who can also make their hashes anew."""
    with raw(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        rows = Rows(connection)
        change(rows)
        rows.finish()
        connection.execute("COMMIT")
