"""The rules of keys in the register: what becomes of each, under which generation.

What is sealed here was sealed before it came; nothing here can open it.
"""

from __future__ import annotations

import dataclasses

from cloister.custody.register_rows import KeyRow
from cloister.custody.register_tables import Rows
from cloister.errors import ConfigError, VerificationError
from cloister.storage.keys import KeyKind


def key_row(rows: Rows, key_id: str) -> KeyRow | None:
    """Returns what is known of a key."""
    found = rows.kept_keys("WHERE key_id = ?", key_id)
    return found[0] if found else None


def check_not_revoked(rows: Rows, key_id: str) -> None:
    """Checks that a key was not revoked here, wherever it is kept.

    Raises:
        VerificationError: If it was.
    """
    row = key_row(rows, key_id)
    if row is not None and row.state == "revoked":
        raise revoked(key_id)


def put_new_key(rows: Rows, row: KeyRow) -> None:
    """Writes a new key.

    Raises:
        ConfigError: If it is known, or another active one has its kind and label.
    """
    known = key_row(rows, row.key_id)
    if known is not None:
        raise ConfigError(
            "this key is in the custodian's keeping already",
            code="key-known",
            expected="another key",
            got=f"{row.key_id}, {known.state}",
            remedy="A revoked key never comes back; make a new one.",
        )
    if rows.kept_keys(
        "WHERE kind = ? AND label = ? AND state = 'active'", row.kind, row.label
    ):
        raise ConfigError(
            f"there is a {row.kind} key with the label {row.label!r} already",
            code="key-label-taken",
            expected="a label that no active key of the kind has",
            got=row.label,
            remedy="Give it another --label, or: cloister custodian keys rotate.",
        )
    rows.put(row, instead_of=None, at=row.at)


def retire_key(rows: Rows, key_id: str, *, at: int) -> KeyRow:
    """Has an active key replaced from now on; returns it as it was.

    Raises:
        ConfigError: If it is no active key.
    """
    row = key_row(rows, key_id)
    if row is None or row.state != "active":
        raise _not_here(key_id, "an active key", row)
    gone = dataclasses.replace(row, state="retired", at=at)
    rows.put(gone, instead_of=row, at=at)
    return row


def destroy_key(rows: Rows, key_id: str, *, at: int) -> KeyRow:
    """Forgets a key's sealed bytes; returns what is left of it.

    Raises:
        ConfigError: If there is no such key, or it was revoked before.
    """
    row = key_row(rows, key_id)
    if row is None or row.state == "revoked":
        raise _not_here(key_id, "a key that is not revoked", row)
    gone = dataclasses.replace(row, state="revoked", sealed=None, at=at)
    rows.put(gone, instead_of=row, at=at)
    return gone


def key_unknown(key_id: str, kind: KeyKind) -> VerificationError:
    """Returns the error for a key that a plan names and is not here."""
    return VerificationError(
        f"the custodian keeps no such {kind} key",
        code="key-unknown",
        expected="a key that was added to it",
        got=key_id,
        remedy="Add it with: cloister custodian keys add --from FILE.",
    )


def revoked(key_id: str) -> VerificationError:
    """Returns the error for a key that was revoked."""
    return VerificationError(
        "this key was revoked",
        code="key-revoked",
        expected="a key that its owner still releases",
        got=key_id,
        remedy="Write a plan that names another key, or amend this one.",
    )


def _not_here(key_id: str, wanted: str, row: KeyRow | None) -> ConfigError:
    return ConfigError(
        "the custodian keeps no such key",
        code="key-unknown",
        expected=wanted,
        got=f"{key_id[:80]}, {row.state}" if row else key_id[:80],
        remedy="See: cloister custodian keys list DIR.",
    )
