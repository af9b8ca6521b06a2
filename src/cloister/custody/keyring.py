"""The keyring: what seals a custodian's keys, itself sealed by its owner.

A file ``keyring.age`` beside the register, in the age format
(https://age-encryption.org/v1), opened by a passphrase or an age identity. In it lies
one 32-byte key for each generation: one, and while a key is being revoked two. The
register says which one counts. So a copy of the register alone opens nothing, and an
older copy of it does not open with the keyring of today.

Removed keys stay readable for whoever kept an older keyring and what opens it, or finds
both on the disk: the file is replaced, the old blocks are not overwritten.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import cbor2
import msgspec
import pyrage  # type: ignore[import-untyped]
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Meta
from typing_extensions import override

from cloister.custody.keyring_errors import (
    damaged_key,
    exposed,
    keyring_damaged,
    keyring_exists,
    keyring_foreign,
    keyring_locked,
    keyring_missing,
    keyring_too_slow,
    keyring_unusable,
)
from cloister.storage.age import read_identity, recipient_of
from cloister.storage.keys import KEY_BYTES, KeyKind, Secret
from cloister.storage.whole_file import write_whole

FIRST_GENERATION: Final = 1
MAX_FILE_BYTES: Final = 64 * 1024
NONCE_BYTES: Final = 12
_LABEL: Final = "cloister/sealed-key/1"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
# pyrage tells its reasons apart in words only. Should they change, a wrong passphrase
# is still refused, under the code for damage.
_LOCKED: Final = frozenset({"Decryption failed", "No matching keys found"})
_TOO_SLOW: Final = "Excessive work parameter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passphrase:
    """Opens a keyring; stays in memory as long as the custodian runs.

    Attributes:
        text: In UTF-8.
    """

    text: Secret

    def encrypt(self, content: bytes) -> bytes:
        """Returns `content` sealed to the passphrase (scrypt, about a second)."""
        sealed: bytes = pyrage.passphrase.encrypt(content, self.text.reveal().decode())
        return sealed

    def decrypt(self, sealed: bytes) -> bytes:
        """Returns what was sealed; `pyrage.DecryptError` if that cannot be."""
        opened: bytes = pyrage.passphrase.decrypt(sealed, self.text.reveal().decode())
        return opened


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityFile:
    """Opens a keyring: a file with one age identity, read each time.

    Attributes:
        path: The file, its owner's alone; best on a token or another disk.
    """

    path: Path

    def encrypt(self, content: bytes) -> bytes:
        """Returns `content` sealed to the identity's recipient."""
        recipient = recipient_of(self._identity())
        sealed: bytes = pyrage.encrypt(
            content, [pyrage.x25519.Recipient.from_str(recipient)]
        )
        return sealed

    def decrypt(self, sealed: bytes) -> bytes:
        """Returns what was sealed; `pyrage.DecryptError` if that cannot be."""
        identity = pyrage.x25519.Identity.from_str(self._identity())
        opened: bytes = pyrage.decrypt(sealed, [identity])
        return opened

    def _identity(self) -> str:
        identity = read_identity(self.path)
        _check_private(self.path, what="identity")
        return identity


Lock: TypeAlias = Passphrase | IdentityFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """An open keyring; `open_keyring` and `create_keyring` make it.

    Attributes:
        party: Whose it is.
        keys: The key of each generation.
    """

    party: str
    keys: Mapping[int, Secret] = field(repr=False)

    def and_next(self, generation: int) -> Keyring:
        """Returns it with the key of one generation, and a fresh one for the next."""
        fresh = Secret(secrets.token_bytes(KEY_BYTES))
        keys = {generation: self.keys[generation], generation + 1: fresh}
        return Keyring(party=self.party, keys=keys)

    def only(self, generation: int) -> Keyring:
        """Returns it with the key of one generation alone."""
        return Keyring(party=self.party, keys={generation: self.keys[generation]})

    def seal(
        self, key: Secret, *, kind: KeyKind, key_id: str, generation: int
    ) -> bytes:
        """Returns a key sealed with AES-256-GCM, for one place in one register."""
        # Random: a generation seals a few hundred keys, and 2**32 would be safe.
        nonce = secrets.token_bytes(NONCE_BYTES)
        bound = self._bound(kind, key_id, generation)
        cipher = AESGCM(self.keys[generation].reveal())
        return nonce + cipher.encrypt(nonce, key.reveal(), bound)

    def unseal(
        self, sealed: bytes, *, kind: KeyKind, key_id: str, generation: int
    ) -> Secret:
        """Returns a key that `seal` sealed.

        Raises:
            StorageError: If it was altered, moved, or sealed by another keyring.
        """
        nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        bound = self._bound(kind, key_id, generation)
        try:
            cipher = AESGCM(self.keys[generation].reveal())
            return Secret(cipher.decrypt(nonce, rest, bound))
        except (InvalidTag, ValueError) as error:
            raise damaged_key(key_id) from error

    def _bound(self, kind: KeyKind, key_id: str, generation: int) -> bytes:
        items = [_LABEL, self.party, generation, kind, key_id]
        return cbor2.dumps(items, canonical=True)


def create_keyring(path: Path, *, party: str, lock: Lock) -> Keyring:
    """Returns a new keyring of one generation, on the disk.

    Raises:
        ConfigError: If `lock` is a file that cannot be used.
        StorageError: If something is there, or it cannot be written.
    """
    if os.path.lexists(path):
        raise keyring_exists(path)
    key = Secret(secrets.token_bytes(KEY_BYTES))
    keyring = Keyring(party=party, keys={FIRST_GENERATION: key})
    save_keyring(path, keyring, lock=lock)
    return keyring


def save_keyring(path: Path, keyring: Keyring, *, lock: Lock) -> None:
    """Puts a keyring in the place of the one on the disk.

    Raises:
        ConfigError: If `lock` is a file that cannot be used.
        StorageError: If it cannot be written.
    """
    write_keyring(path, seal_keyring(keyring, lock=lock))


def seal_keyring(keyring: Keyring, *, lock: Lock) -> bytes:
    """Returns a keyring sealed; takes seconds with a passphrase.

    Raises:
        ConfigError: If `lock` is a file that cannot be used.
        StorageError: Likewise.
    """
    keys = {number: key.reveal() for number, key in keyring.keys.items()}
    content = _Content(format=1, party=keyring.party, keys=keys)
    return lock.encrypt(msgspec.json.encode(content))


def write_keyring(path: Path, sealed: bytes) -> None:
    """Puts a sealed keyring in the place of the one on the disk.

    Raises:
        StorageError: If it cannot be written.
    """
    try:
        write_whole(path, sealed)
    except OSError as error:
        raise keyring_unusable(path, error.strerror or "an error") from error


def open_keyring(path: Path, *, party: str, lock: Lock) -> Keyring:
    """Returns the keyring in the file at `path`.

    Raises:
        ConfigError: If `lock` does not open it (``keyring-locked``), or is a file that
            cannot be used.
        StorageError: If it is missing, open to other users, damaged, another's, or
            sealed with more work than this machine does (``keyring-too-slow``).
    """
    return unseal_keyring(read_keyring(path), path=path, party=party, lock=lock)


def unseal_keyring(sealed: bytes, *, path: Path, party: str, lock: Lock) -> Keyring:
    """Returns a sealed keyring; takes seconds with a passphrase.

    Args:
        sealed: As `read_keyring` read it.
        path: From where, for people.
        party: Whose it is to be.
        lock: What opens it.

    Raises:
        ConfigError: As `open_keyring`.
        StorageError: Likewise.
    """
    try:
        content = lock.decrypt(sealed)
    except pyrage.DecryptError as error:
        if str(error) in _LOCKED:
            raise keyring_locked(path) from error
        if str(error).startswith(_TOO_SLOW):
            raise keyring_too_slow(path) from error
        raise keyring_damaged(path) from error
    try:
        found: _Content | None = msgspec.json.decode(content, type=_Content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = None
    # Not in the handler: that exception may carry the content.
    if found is None:
        raise keyring_damaged(path)
    if found.party != party:
        raise keyring_foreign(path, expected=party, got=found.party)
    keys = {number: Secret(key) for number, key in found.keys.items()}
    return Keyring(party=party, keys=keys)


class _Content(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal[1]
    party: str
    keys: Annotated[
        dict[
            Annotated[int, Meta(ge=FIRST_GENERATION, le=2**53)],
            Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)],
        ],
        Meta(min_length=1, max_length=2),
    ]

    @override
    def __repr__(self) -> str:
        return "_Content(...)"


def read_keyring(path: Path) -> bytes:
    """Returns the sealed keyring in the file at `path`.

    Raises:
        StorageError: If it is missing, open to other users, too large, or cannot be
            read.
    """
    try:
        _check_private(path, what="keyring")
        with path.open("rb") as file:
            sealed = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise keyring_missing(path) from error
    except OSError as error:
        raise keyring_unusable(path, error.strerror or "an error") from error
    if len(sealed) > MAX_FILE_BYTES:
        raise keyring_damaged(path)
    return sealed


def _check_private(path: Path, *, what: str) -> None:
    mode = path.stat().st_mode
    # Neither a pipe nor a device is waited for.
    if not stat.S_ISREG(mode):
        raise keyring_unusable(path, "no regular file")
    if mode & _OTHERS:
        raise exposed(path, what=what, mode=stat.S_IMODE(mode))
