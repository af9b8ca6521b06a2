"""Key and certificate files of a deployment: written once, read back strictly.

A directory is its owner's alone (0700), and so is every key (0600). Nothing is ever
overwritten: a second `create` in one place would orphan every certificate issued under
the first.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cloister.errors import ConfigError, StorageError

MAX_FILE_BYTES = 65_536
_OWNER_ONLY_FILE = 0o600
_OWNER_ONLY_DIRECTORY = 0o700


def make_private_directory(directory: Path) -> None:
    """Makes a directory that only its owner can enter; one that is there is narrowed.

    Raises:
        StorageError: If it cannot be made.
    """
    try:
        directory.mkdir(mode=_OWNER_ONLY_DIRECTORY, parents=True, exist_ok=True)
        directory.chmod(_OWNER_ONLY_DIRECTORY)
    except OSError as error:
        raise _not_written(directory, error) from error


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read; never over another one.

    Raises:
        ConfigError: If there is one already.
        StorageError: If it cannot be written.
    """
    try:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY_FILE
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} exists already",
            code="simulated-exists",
            expected="a place without keys",
            remedy="use another directory, or remove this one if nothing needs it",
        ) from error
    except OSError as error:
        raise _not_written(path, error) from error


def write_new_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Writes a private key in PKCS #8; see `write_new`.

    Raises:
        ConfigError: If there is a file already.
        StorageError: If it cannot be written.
    """
    write_new(
        path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


def read_file(path: Path) -> bytes:
    """Returns a file's content.

    Raises:
        ConfigError: If there is none.
        StorageError: If it cannot be read or is far too large.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise damaged(path, f"over {MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is missing",
            code="simulated-missing",
            expected="a simulated platform's directory",
            remedy="make the deployment with `cloister init`, or correct the path",
        ) from error
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror}",
            code="simulated-unreadable",
            remedy="correct its permissions",
        ) from error


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Returns a P-256 private key.

    Raises:
        ConfigError: If the file is missing, or others may read it.
        StorageError: If it holds no such key.
    """
    content = read_file(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(
            f"{path} can be read by others",
            code="simulated-permissions",
            expected="permissions 0600",
            remedy=f"chmod 600 {path}",
        )
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise damaged(path, "no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(
        key.curve, ec.SECP256R1
    ):
        raise damaged(path, "not a P-256 key")
    return key


def damaged(path: Path, why: str) -> StorageError:
    """Returns the error for a file that is there and cannot be what it was."""
    return StorageError(
        f"{path} is damaged: {why}",
        code="simulated-damaged",
        remedy="restore it, or make a new deployment with `cloister init`",
    )


def _not_written(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written: {error.strerror}",
        code="simulated-unwritable",
        remedy="use a directory that this user can write to",
    )
