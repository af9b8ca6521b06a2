"""Files in the age format: what a run leaves to its recipients, whatever it holds.

Form: ``docs/spec/model-vault.md``. Only ciphertext ever reaches the disk, unless a
recipient asks for the clear. A file appears under its name complete or not at all.
What this module does not do: look at the content, or say who the recipients are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloister.errors import ConfigError, StorageError
from cloister.storage.age import decrypt, encrypt
from cloister.storage.whole_file import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedBytes:
    """A sealed file as it lies on disk.

    Attributes:
        path: Where it lies.
        sha256: SHA-256 (hex) of the file.
        size_bytes: Its length.
        recipients: To whom it was sealed.
    """

    path: Path
    sha256: str
    size_bytes: int
    recipients: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedBytes:
    """A sealed file as its recipient sees it.

    Attributes:
        content: What was sealed.
        sha256: SHA-256 (hex) of the sealed file.
    """

    content: bytes = field(repr=False)
    sha256: str


def seal_bytes(content: bytes, *, recipients: Sequence[str], path: Path) -> SealedBytes:
    """Seals `content` and writes it to `path`, whole or not at all.

    Args:
        content: Anything.
        recipients: age X25519 recipients, ``age1...``; each of them alone can open it.
        path: Replaced if it exists; its directory must exist.

    Raises:
        ConfigError: If a recipient is invalid, or there is none.
        StorageError: If the file cannot be written (``model-unwritable``).
    """
    sealed = encrypt(content, recipients)
    write_output(path, sealed)
    return SealedBytes(
        path=path,
        sha256=hashlib.sha256(sealed).hexdigest(),
        size_bytes=len(sealed),
        recipients=tuple(recipients),
    )


def open_bytes(path: Path, *, identity: str) -> OpenedBytes:
    """Returns what is sealed in `path`, and the digest of the very file it came from.

    Args:
        path: A file written by `seal_bytes`, or by ``age``.
        identity: One recipient's identity, ``AGE-SECRET-KEY-1...``.

    Raises:
        ConfigError: If the file is missing (``model-missing``), or the identity is
            malformed.
        StorageError: If it cannot be read (``model-unreadable``), is not in age's
            format (``model-not-age``), sealed to others (``model-not-for-identity``),
            altered or cut off (``model-damaged``).
    """
    # Read once: what is hashed is what is opened, whoever changes the file meanwhile.
    sealed = _read(path)
    content = decrypt(sealed, identity=identity, path=path)
    return OpenedBytes(content=content, sha256=hashlib.sha256(sealed).hexdigest())


def check_new(path: Path) -> Path:
    """Returns the path of an output, which whoever asks for it chooses.

    Raises:
        ConfigError: If it exists (``output-exists``), or its directory does not
            (``output-directory``).
    """
    if path.exists():
        raise ConfigError(
            f"{path} exists",
            code="output-exists",
            expected="a new file",
            remedy="Choose another name, or remove it.",
        )
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"there is no directory for {path}",
            code="output-directory",
            expected="a directory that exists",
            remedy="Make it, or choose another place.",
        )
    return path


def unseal_bytes(path: Path, *, identity: str, output: Path) -> int:
    """Writes what is sealed in `path` in the clear, as a recipient asked.

    Args:
        path: The sealed file.
        identity: One recipient's identity.
        output: A new file; mode 0600, whole or not at all; the same bytes that
            ``age --decrypt`` gives.

    Returns:
        How many bytes it has.

    Raises:
        ConfigError: As `open_bytes` and `check_new`.
        StorageError: As `open_bytes`, and if `output` cannot be written.
    """
    check_new(output)
    content = open_bytes(path, identity=identity).content
    write_output(output, content)
    return len(content)


def write_output(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, mode 0600.

    Raises:
        StorageError: If it cannot be written (``model-unwritable``).
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}",
            code="model-unwritable",
            remedy="Check that the directory exists, is writable and has space.",
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(
            f"no sealed file {path}",
            code="model-missing",
            remedy="Give the path of a sealed model, or of a run that has ended.",
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot read the sealed file {path}: {error.strerror}",
            code="model-unreadable",
            remedy="Check the file's permissions and the disk.",
        ) from error
