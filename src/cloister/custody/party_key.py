"""A party's key on its custodian's disk: who holds this file speaks for the party.

It signs consents, warrants and the custodian's own certificate. So it is made where it
stays, readable by its owner alone, and never overwritten: the plan names its public
half, and a lost key cannot be had again.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cloister.errors import ConfigError, StorageError
from cloister.plan.keys import format_party_key

# An Ed25519 key in PEM is 119 bytes; people may write a comment above it.
MAX_FILE_BYTES = 4096
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def new_party_key(path: Path) -> str:
    """Writes a fresh party key (PEM, 0600) and returns its public half.

    The key is on the disk when this returns; if it raises, nothing is left behind.

    Raises:
        ConfigError: If the file exists.
        StorageError: If it cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        _write_new(path, pem)
    except FileExistsError as error:
        raise ConfigError(
            f"the party key {path} exists already",
            code="party-key-exists",
            expected="a place without a key",
            remedy="Use the key that is there. Plans name it, and cannot change it.",
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot write the party key {path}",
            code="party-key-unwritable",
            got=error.strerror or "an error",
            remedy="Use a directory that this user can write to.",
        ) from error
    return format_party_key(key)


def read_party_key(path: Path) -> Ed25519PrivateKey:
    """Returns the party key in `path`.

    Raises:
        ConfigError: If it is not an Ed25519 private key in PEM, without a password, or
            if others than its owner may read it.
    """
    try:
        mode, pem = _read(path)
    except OSError as error:
        raise _unusable(path, error.strerror or "an error") from error
    if not stat.S_ISREG(mode):
        raise _unusable(path, "no regular file")
    if mode & _OTHERS:
        raise _exposed(path, mode)
    if len(pem) > MAX_FILE_BYTES:
        raise _unusable(path, f"over {MAX_FILE_BYTES} bytes")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(path, type(error).__name__) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable(path, "a key of another kind")
    return key


def _read(path: Path) -> tuple[int, bytes]:
    """Returns a file's mode and, if it is a regular file, its beginning."""
    # Neither a pipe nor a device is waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # Of the open file: another might take its place meanwhile.
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            return mode, b""
        return mode, os.read(descriptor, MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)


def _write_new(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException:
        # Also on Ctrl-C: half a key would keep the next attempt from its place. Raised
        # again below.
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _exposed(path: Path, mode: int) -> ConfigError:
    return ConfigError(
        f"the party key {path} can be read by others than its owner",
        code="party-key-exposed",
        expected="permissions 0600",
        got=f"{stat.S_IMODE(mode):04o}",
        remedy=f"`chmod 600 {path}`; if others had access, make a new key and plan.",
    )


def _unusable(path: Path, got: str) -> ConfigError:
    return ConfigError(
        f"cannot use the party key {path}",
        code="party-key-unusable",
        expected="an Ed25519 private key in PEM, without a password",
        got=got,
        remedy="It is `key` in custodian.toml, or `party_key` in site.toml.",
    )
