from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from tests.support.keyrings import Safe, new_identity_file, new_safe
from tests.support.refusals import code_of
from tests.support.registers import MINUTE, PARTY, START, raw
from typing_extensions import override

from cloister.custody.key_store import RegisterKeys
from cloister.custody.keyring import (
    IdentityFile,
    create_keyring,
    open_keyring,
    save_keyring,
)
from cloister.custody.register import Register
from cloister.errors import ConfigError, StorageError
from cloister.storage.age import new_identity, recipient_of
from cloister.storage.keys import KeyKind, Secret, key_id

ROOT = Path(__file__).parents[3]
CANARY = Secret(b"canary: a key that is nowhere..!")
UNKNOWN = "sha256:" + 64 * "0"


@pytest.fixture
def safe(tmp_path: Path) -> Safe:
    return new_safe(tmp_path)


@pytest.fixture
def register(safe: Safe) -> Iterator[Register]:
    with Register.open(safe.database) as register:
        yield register


def config_code(act: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        act()
    return caught.value.code


def storage_code(act: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        act()
    return caught.value.code


def generations(safe: Safe) -> set[int]:
    return set(open_keyring(safe.keyring, party=PARTY, lock=safe.lock).keys)


def copy_of(safe: Safe, directory: Path) -> Safe:
    directory.mkdir()
    for path in (safe.database, safe.keyring, safe.identity):
        shutil.copy2(path, directory)
    return Safe(directory=directory)


# Added


@pytest.mark.parametrize("kind", ["data", "state-share"])
def test_a_new_key_is_given_back_by_its_name(
    safe: Safe, register: Register, kind: KeyKind
) -> None:
    name = safe.keys(register).add(kind, label="scans", at=START)
    secret = safe.keys(register).secret(name, kind=kind)
    assert key_id(kind, secret) == name
    (row,) = register.kept_keys()
    assert (row.key_id, row.kind, row.label, row.state) == (
        name,
        kind,
        "scans",
        "active",
    )


def test_a_vault_key_is_an_identity_named_by_its_recipient(
    safe: Safe, register: Register
) -> None:
    keys = safe.keys(register)
    name = keys.add("vault", label="vault", at=START)
    identity = keys.secret(name, kind="vault").reveal().decode()
    assert recipient_of(identity) == name
    brought, recipient = new_identity()
    secret = Secret(brought.encode())
    assert keys.add("vault", label="own", at=START, secret=secret) == recipient
    assert keys.secret(recipient, kind="vault") == secret


def test_a_key_is_taken_in_as_it_is_once(safe: Safe, register: Register) -> None:
    keys = safe.keys(register)
    name = keys.add("data", label="own", at=START, secret=CANARY)
    assert name == key_id("data", CANARY)
    assert keys.secret(name, kind="data") == CANARY
    again = partial(keys.add, "data", label="more", at=START, secret=CANARY)
    assert config_code(again) == "key-known"
    keys.revoke(name, at=START)
    assert config_code(again) == "key-known"


def test_one_active_key_of_a_kind_has_a_label(safe: Safe, register: Register) -> None:
    keys = safe.keys(register)
    keys.add("data", label="scans", at=START)
    keys.add("state-share", label="scans", at=START)
    code = config_code(lambda: keys.add("data", label="scans", at=START))
    assert code == "key-label-taken"
    assert len(register.kept_keys()) == 2


def test_a_key_of_another_kind_or_name_is_unknown(
    safe: Safe, register: Register
) -> None:
    keys = safe.keys(register)
    name = keys.add("data", label="scans", at=START)
    assert code_of(lambda: keys.secret(name, kind="state-share")) == "key-unknown"
    assert code_of(lambda: keys.secret(UNKNOWN, kind="data")) == "key-unknown"


def test_no_key_lies_open_on_the_disk_or_in_any_text(
    safe: Safe, register: Register
) -> None:
    keys = safe.keys(register)
    keys.add("data", label="own", at=START, secret=CANARY)
    for path in safe.directory.iterdir():
        assert CANARY.reveal() not in path.read_bytes()
    shown = f"{keys!r}{register.kept_keys()!r}{list(register.records())!r}"
    assert "canary" not in shown
    assert CANARY.reveal().hex() not in shown


# Rotated


def test_a_rotated_key_is_replaced_and_still_given(
    safe: Safe, register: Register
) -> None:
    keys = safe.keys(register)
    old = keys.add("data", label="scans", at=START, secret=CANARY)
    new = keys.rotate(old, at=START + MINUTE)
    assert new != old
    assert keys.secret(old, kind="data") == CANARY
    assert keys.secret(new, kind="data") != CANARY
    states = {row.key_id: (row.state, row.label) for row in register.kept_keys()}
    assert states == {old: ("retired", "scans"), new: ("active", "scans")}
    for gone in (old, UNKNOWN):
        code = config_code(partial(keys.rotate, gone, at=START))
        assert code == "key-unknown"


# Revoked


def test_a_revoked_key_is_gone_and_the_others_are_not(
    safe: Safe, register: Register
) -> None:
    keys = safe.keys(register)
    kept = keys.add("state-share", label="share", at=START)
    secret = keys.secret(kept, kind="state-share")
    name = keys.add("data", label="scans", at=START)
    with raw(safe.database) as connection:
        (sealed,) = connection.execute(
            "SELECT sealed FROM keys WHERE key_id = ?", (name,)
        ).fetchone()
    keys.revoke(name, at=START)
    assert code_of(lambda: keys.secret(name, kind="data")) == "key-revoked"
    assert keys.secret(kept, kind="state-share") == secret
    assert generations(safe) == {2}
    # Not even sealed, nor in a free page.
    assert sealed not in safe.database.read_bytes()
    assert config_code(lambda: keys.revoke(name, at=START)) == "key-unknown"
    assert generations(safe) == {2}
    again = safe.keys(register)
    assert again.secret(kept, kind="state-share") == secret
    assert code_of(lambda: again.secret(name, kind="data")) == "key-revoked"


def test_an_older_copy_of_the_register_does_not_open_with_the_present_keyring(
    safe: Safe, tmp_path: Path
) -> None:
    with Register.open(safe.database) as register:
        keys = safe.keys(register)
        name = keys.add("data", label="scans", at=START)
        older = copy_of(safe, tmp_path / "older")
        keys.revoke(name, at=START)
    shutil.copy2(older.database, safe.database)
    with Register.open(safe.database) as register:
        assert storage_code(lambda: safe.keys(register)) == "keyring-generation"


def test_an_older_keyring_does_not_open_the_present_register(
    safe: Safe, register: Register, tmp_path: Path
) -> None:
    keys = safe.keys(register)
    name = keys.add("data", label="scans", at=START)
    older = copy_of(safe, tmp_path / "older")
    keys.revoke(name, at=START)
    shutil.copy2(older.keyring, safe.keyring)
    assert storage_code(lambda: safe.keys(register)) == "keyring-generation"


def test_a_running_custodian_notices_what_another_process_revokes(
    safe: Safe, register: Register
) -> None:
    keys = safe.keys(register)
    kept = keys.add("state-share", label="share", at=START)
    secret = keys.secret(kept, kind="state-share")
    name = keys.add("data", label="scans", at=START)
    with Register.open(safe.database) as other:
        safe.keys(other).revoke(name, at=START)
    assert code_of(lambda: keys.secret(name, kind="data")) == "key-revoked"
    assert keys.secret(kept, kind="state-share") == secret
    keys.revoke(kept, at=START)
    assert generations(safe) == {3}


@pytest.mark.parametrize(
    ("when", "between", "after"),
    [
        ("1-before", {1}, {1}),
        ("1-after", {1, 2}, {1}),
        ("2-before", {1, 2}, {2}),
        ("2-after", {2}, {2}),
    ],
)
def test_a_crash_at_any_step_of_a_revocation_loses_no_other_key(
    safe: Safe, when: str, between: set[int], after: set[int]
) -> None:
    with Register.open(safe.database) as register:
        keys = safe.keys(register)
        kept = keys.add("state-share", label="share", at=START)
        secret = keys.secret(kept, kind="state-share")
        name = keys.add("data", label="scans", at=START, secret=CANARY)
    paths = (safe.database, safe.keyring, safe.identity)
    done = subprocess.run(  # noqa: S603 - ourselves
        [
            *(sys.executable, "-m", "tests.support.revoking_process"),
            *(*map(str, paths), name, when),
        ],
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    assert generations(safe) == between
    with Register.open(safe.database) as register:
        keys = safe.keys(register)
        assert generations(safe) == after
        assert keys.secret(kept, kind="state-share") == secret
        if after == {2}:
            assert code_of(lambda: keys.secret(name, kind="data")) == "key-revoked"
        else:
            assert keys.secret(name, kind="data") == CANARY
            keys.revoke(name, at=START)
        assert keys.secret(kept, kind="state-share") == secret
        assert generations(safe) == {2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching(IdentityFile):
    """Opens a keyring while somebody else looks whether the register is free.

    Attributes:
        database: The register's file.
        used: What was done, in order.
    """

    database: Path
    used: list[str]

    @override
    def encrypt(self, content: bytes) -> bytes:
        self._look("sealed")
        return IdentityFile(path=self.path).encrypt(content)

    @override
    def decrypt(self, sealed: bytes) -> bytes:
        self._look("opened")
        return IdentityFile(path=self.path).decrypt(sealed)

    def _look(self, what: str) -> None:
        self.used.append(what)
        with contextlib.closing(
            sqlite3.connect(self.database, timeout=0, isolation_level=None)
        ) as other:
            # Refused at once if the lock is held.
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")


def test_nobody_waits_for_the_register_while_a_keyring_is_sealed_or_opened(
    safe: Safe, register: Register
) -> None:
    """With a passphrase either takes seconds, and a custodian is at work meanwhile."""
    watching = Watching(path=safe.identity, database=safe.database, used=[])
    keyring = open_keyring(safe.keyring, party=PARTY, lock=safe.lock)
    save_keyring(safe.keyring, keyring.and_next(1), lock=safe.lock)
    keys = RegisterKeys.open(register, path=safe.keyring, lock=watching)
    assert watching.used == ["opened", "sealed"]
    kept, gone, also = (
        keys.add("data", label=label, at=START) for label in ("a", "b", "c")
    )
    keys.revoke(gone, at=START)
    assert watching.used[2:] == ["sealed", "sealed"]
    with Register.open(safe.database) as other:
        safe.keys(other).revoke(also, at=START)
    assert key_id("data", keys.secret(kept, kind="data")) == kept
    assert watching.used[4:] == ["opened"]
    assert generations(safe) == {3}


def test_a_revocation_that_another_process_overtakes_begins_again(
    safe: Safe, register: Register
) -> None:
    keys = safe.keys(register)
    kept, first, second = (
        keys.add("data", label=label, at=START) for label in ("a", "b", "c")
    )

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Overtaken(IdentityFile):
        todo: list[str]

        @override
        def encrypt(self, content: bytes) -> bytes:
            if self.todo:
                with Register.open(safe.database) as other:
                    safe.keys(other).revoke(self.todo.pop(), at=START)
            return IdentityFile(path=self.path).encrypt(content)

    lock = Overtaken(path=safe.identity, todo=[first])
    slow = RegisterKeys.open(register, path=safe.keyring, lock=lock)
    slow.revoke(second, at=START)
    assert generations(safe) == {3}
    for name in (first, second):
        assert code_of(partial(slow.secret, name, kind="data")) == "key-revoked"
    for its_keys in (slow, safe.keys(register)):
        assert key_id("data", its_keys.secret(kept, kind="data")) == kept


def test_what_a_crash_left_is_not_taken_for_what_another_process_began(
    safe: Safe, register: Register
) -> None:
    """One tidies up after a crash while another revokes a key: both have a turn."""
    keys = safe.keys(register)
    kept, gone = (keys.add("data", label=label, at=START) for label in ("a", "b"))
    keyring = open_keyring(safe.keyring, party=PARTY, lock=safe.lock)
    save_keyring(safe.keyring, keyring.and_next(1), lock=safe.lock)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Overtaken(IdentityFile):
        todo: list[str]

        @override
        def decrypt(self, sealed: bytes) -> bytes:
            if self.todo:
                keys.revoke(self.todo.pop(), at=START)
            return IdentityFile(path=self.path).decrypt(sealed)

    lock = Overtaken(path=safe.identity, todo=[gone])
    slow = RegisterKeys.open(register, path=safe.keyring, lock=lock)
    assert generations(safe) == {2}
    for its_keys in (slow, keys, safe.keys(register)):
        assert key_id("data", its_keys.secret(kept, kind="data")) == kept


def test_a_keyring_that_cannot_be_written_revokes_nothing(
    safe: Safe, register: Register
) -> None:
    keys = safe.keys(register)
    name = keys.add("data", label="scans", at=START, secret=CANARY)
    moved = safe.identity.rename(safe.directory / "elsewhere.txt")
    assert config_code(lambda: keys.revoke(name, at=START)) == "identity-missing"
    moved.rename(safe.identity)
    assert keys.secret(name, kind="data") == CANARY
    keys.revoke(name, at=START)
    assert generations(safe) == {2}


# What does not belong together


def test_a_keyring_of_another_custodian_is_found_out_at_the_start(
    safe: Safe, register: Register
) -> None:
    safe.keys(register).add("data", label="scans", at=START)
    safe.keyring.unlink()
    create_keyring(safe.keyring, party=PARTY, lock=safe.lock)
    assert storage_code(lambda: safe.keys(register)) == "key-damaged"


def test_a_wrong_identity_is_found_out_at_the_start(
    safe: Safe, register: Register
) -> None:
    new_identity_file(safe.identity)
    assert config_code(lambda: safe.keys(register)) == "keyring-locked"


def test_a_generation_too_many_is_taken_out_at_the_start(
    safe: Safe, register: Register
) -> None:
    keyring = open_keyring(safe.keyring, party=PARTY, lock=safe.lock)
    save_keyring(safe.keyring, keyring.and_next(1), lock=safe.lock)
    safe.keys(register)
    assert generations(safe) == {1}


def test_what_becomes_of_a_key_is_recorded(safe: Safe, register: Register) -> None:
    keys = safe.keys(register)
    old = keys.add("data", label="scans", at=START)
    new = keys.rotate(old, at=START)
    keys.revoke(old, at=START)
    found = [(row.kind, row.subject) for row in register.records()]
    assert found == [
        ("custodian-opened", PARTY),
        ("key-added", old),
        ("key-rotated", new),
        ("key-revoked", old),
    ]
