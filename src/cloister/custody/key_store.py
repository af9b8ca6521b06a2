"""Where a custodian's keys come from; the built-in store seals them in the register.

How a revoked key is gone for good: `held_keyring`.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Protocol, Self

from cloister.custody.audit_records import KeyAdded, KeyRevoked, KeyRotated
from cloister.custody.held_keyring import HeldKeyring, NextGeneration
from cloister.custody.key_material import check_label, make_key, name_of
from cloister.custody.keyring import Keyring, Lock
from cloister.custody.register import Register
from cloister.custody.register_clock import any_time
from cloister.custody.register_keys import (
    destroy_key,
    key_row,
    key_unknown,
    put_new_key,
    retire_key,
    revoked,
)
from cloister.custody.register_records import write_record
from cloister.custody.register_rows import KeyRow
from cloister.custody.register_tables import Rows
from cloister.errors import CloisterError, StorageError
from cloister.storage.keys import KeyKind, Secret


class KeyStore(Protocol):
    """What a custodian asks for its party's keys.

    The built-in one is `RegisterKeys`. To have an organisation's own key manager behind
    a custodian, give `Custodian` an object of this one method, which asks that service:
    the custodian alone decides who gets a key, records it, and seals it to the node; it
    compares what it was given with the plan's name for it. The service should release
    to this custodian alone, and keep its own record of that.
    """

    def secret(self, key_id: str, *, kind: KeyKind) -> Secret:
        """Returns a key; for a vault key, the text of its age identity in ASCII.

        Retired keys are returned too: plans name them. May wait for a disk or a
        service; called in a thread.

        Args:
            key_id: As the plan has it: `storage.keys.key_id`, or an age recipient.
            kind: What it is to be.

        Raises:
            VerificationError: If there is no such key of this kind (``key-unknown``),
                or it was revoked (``key-revoked``). The node reads all of its text.
            StorageError: If it cannot be read. The node reads its code alone; the
                custodian's log has the text.
            BaseException: Anything else is foreign, and its text may quote keys and
                addresses: no node and no log gets it. The log has its type, under
                ``key-store-failed``.
        """
        ...


def ask_store(store: KeyStore, key_id: str, *, kind: KeyKind) -> Secret:
    """Returns a key from a store that may be somebody else's code.

    Raises:
        VerificationError: If it has no such key.
        StorageError: If it cannot read it, or fails in a way that is not ours
            (``key-store-failed``); nothing of that is told but its type.
    """
    try:
        given: object = store.secret(key_id, kind=kind)
        if isinstance(given, Secret) and type(given.reveal()) is bytes:
            return given
        failed = f"something that is no key, {type(given).__name__}"
    except (CloisterError, KeyboardInterrupt):
        raise
    # Foreign code may raise anything: bindings to Rust panic with a BaseException, and
    # a node would wait for an answer until it gives up.
    except BaseException as error:  # noqa: BLE001
        failed = type(error).__name__
    # Outside of the handler, so that the foreign error is not even its context: whoever
    # prints a chain would print its text.
    raise StorageError(
        "the key store failed",
        code="key-store-failed",
        expected=f"the {kind} key {key_id}",
        got=failed,
        remedy="Its own record says why.",
    )


class RegisterKeys:
    """The party's keys; a `KeyStore`. Made by `open`; for any thread.

    Args:
        register: The party's register.
        ring: What seals them in it.
    """

    def __init__(self, register: Register, ring: HeldKeyring) -> None:
        self._register = register
        self._ring = ring

    @classmethod
    def open(cls, register: Register, *, path: Path, lock: Lock) -> Self:
        """Returns the keys in a register; each of them was opened once.

        Finishes, or undoes, what a crash interrupted.

        Args:
            register: The party's register.
            path: The keyring's file.
            lock: What opens it.

        Raises:
            ConfigError: If `lock` does not open the keyring.
            StorageError: If the keyring is missing, exposed, damaged, another party's,
                or of another time than the register; or a key does not open.
        """
        keys = cls(register, HeldKeyring.open(register, path=path, lock=lock))
        with register.transaction() as rows:
            for row in rows.kept_keys():
                keys._unseal(rows, row)
        return keys

    def secret(self, key_id: str, *, kind: KeyKind) -> Secret:
        """See `KeyStore`."""
        self._ring.catch_up()
        with self._register.transaction() as rows:
            row = key_row(rows, key_id)
            if row is None or row.kind != kind:
                raise key_unknown(key_id, kind)
            secret = self._unseal(rows, row)
        if secret is None:
            raise revoked(key_id)
        return secret

    def add(
        self, kind: KeyKind, *, label: str, at: datetime, secret: Secret | None = None
    ) -> str:
        """Returns the name of a key that is kept from now on.

        Args:
            kind: What it is for.
            label: The owner's word for it; one active key of a kind has it.
            at: The custodian's time.
            secret: The key, if it is not to be a new one; for a vault key the text of
                an age identity.

        Raises:
            ConfigError: If it is known already, its label is taken, or it is no key of
                this kind.
        """
        secret = make_key(kind) if secret is None else secret
        row = _row(kind, secret, label=label, at=any_time(at))
        self._ring.catch_up()
        with self._register.transaction() as rows:
            put_new_key(rows, self._sealed(rows, row, secret))
            added = KeyAdded(key_id=row.key_id, key_kind=kind, label=label)
            write_record(rows, added, subject=row.key_id, at=row.at)
        return row.key_id

    def rotate(self, replaced: str, *, at: datetime) -> str:
        """Returns the name of a new key in the place of one of the same kind and label.

        That one is released on to plans that name it.

        Raises:
            ConfigError: If `replaced` is no active key.
        """
        now = any_time(at)
        self._ring.catch_up()
        with self._register.transaction() as rows:
            old = retire_key(rows, replaced, at=now)
            secret = make_key(old.kind)
            row = _row(old.kind, secret, label=old.label, at=now)
            put_new_key(rows, self._sealed(rows, row, secret))
            rotated = KeyRotated(
                key_id=row.key_id, key_kind=old.kind, label=old.label, replaces=replaced
            )
            write_record(rows, rotated, subject=row.key_id, at=now)
        return row.key_id

    def revoke(self, key_id: str, *, at: datetime) -> None:
        """Destroys a key here, for ever, and seals all others anew.

        What a node got before, it has; what was copied of both files before, opens.

        Raises:
            ConfigError: If there is no such key, or it was revoked before.
        """
        now = any_time(at)
        while not self._revoke(key_id, self._ring.next_generation(), at=now):
            # Another process revoked a key meanwhile, and the generation is another.
            pass

    def _revoke(self, key_id: str, coming: NextGeneration, *, at: int) -> bool:
        """Revokes a key if `coming` is the next generation still; returns whether."""
        with self._register.transaction() as rows:
            if rows.head.generation != coming.before:
                return False
            gone = destroy_key(rows, key_id, at=at)
            self._ring.begin(coming)
            _seal_anew(rows, coming, at=at)
            record = KeyRevoked(
                key_id=key_id,
                key_kind=gone.kind,
                label=gone.label,
                generation=rows.head.generation,
            )
            write_record(rows, record, subject=key_id, at=at)
        self._ring.finish(coming)
        return True

    def _sealed(self, rows: Rows, row: KeyRow, secret: Secret) -> KeyRow:
        return _sealed(rows, row, secret, ring=self._ring.current(rows))

    def _unseal(self, rows: Rows, row: KeyRow) -> Secret | None:
        return _unsealed(rows, row, ring=self._ring.current(rows))


def _seal_anew(rows: Rows, coming: NextGeneration, *, at: int) -> None:
    opened = [(row, _unsealed(rows, row, ring=coming.ring)) for row in rows.kept_keys()]
    rows.set_generation(coming.before + 1)
    for row, secret in opened:
        if secret is not None:
            anew = _sealed(rows, row, secret, ring=coming.ring)
            rows.put(anew, instead_of=row, at=at)


def _sealed(rows: Rows, row: KeyRow, secret: Secret, *, ring: Keyring) -> KeyRow:
    sealed = ring.seal(
        secret, kind=row.kind, key_id=row.key_id, generation=rows.head.generation
    )
    return dataclasses.replace(row, sealed=sealed)


def _unsealed(rows: Rows, row: KeyRow, *, ring: Keyring) -> Secret | None:
    if row.sealed is None:
        return None
    return ring.unseal(
        row.sealed, kind=row.kind, key_id=row.key_id, generation=rows.head.generation
    )


def _row(kind: KeyKind, secret: Secret, *, label: str, at: int) -> KeyRow:
    return KeyRow(
        key_id=name_of(kind, secret),
        kind=kind,
        label=check_label(label),
        state="active",
        sealed=b"",
        created_at=at,
        at=at,
    )
