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

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.plan_tree import plan_tree, put, toml_of

from cloister.custody.register import Register
from cloister.custody.register_rows import MarkRow, PlanRow, Rows, WarrantRow
from cloister.plan.amendment import successor_text
from cloister.plan.consent import Consent, sign_consent
from cloister.plan.keys import format_party_key
from cloister.plan.plan import Plan, PlanHash, parse_plan, plan_hash
from cloister.ratls.identity import SPKI_BYTES, Spki
from cloister.ratls.mark import Mark
from cloister.ratls.warrant import WarrantTerms

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
    return register.grant(plan.hash, tls_key=key_of_node(node), at=at, life=life)


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
