"""The trained model, sealed to its owners.

Contents: the arrays in safetensors format (https://github.com/huggingface/safetensors),
encrypted whole to age X25519 recipients (https://age-encryption.org/v1). So the public
`age` tool opens it with an owner's identity, and any safetensors reader reads the rest.

Only ciphertext ever reaches the disk. A sealed model appears under its name complete or
not at all. What this module does not do: say who the recipients are; the plan does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyrage  # type: ignore[import-untyped]
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from cloister.errors import ConfigError, StorageError

_AGE_MAGIC = b"age-encryption.org/v1\n"
_IDENTITY_PREFIX = "AGE-SECRET-KEY-1"
# age-keygen writes about 190 bytes; comments may add some.
_IDENTITY_FILE_BYTES = 64 * 1024

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedModel:
    """A sealed model as it lies on disk.

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
class OpenedModel:
    """A model as its owner sees it.

    Attributes:
        arrays: The arrays by name, read-only.
        metadata: The text that was sealed with them.
    """

    arrays: Arrays = field(repr=False)
    metadata: dict[str, str]


def new_identity() -> tuple[str, str]:
    """Returns a fresh X25519 identity (secret) and its recipient (public), as text."""
    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


def read_identity(path: Path) -> str:
    """Returns the one identity in a file as `age-keygen` writes it.

    Args:
        path: A text file; empty lines and lines that start with ``#`` are skipped.

    Raises:
        ConfigError: If the file cannot be read, or holds anything but one identity.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_IDENTITY_FILE_BYTES).decode()
    except OSError as error:
        raise ConfigError(
            f"cannot read the identity file {path}: {error.strerror}",
            code="identity-missing",
            expected="a file as age-keygen writes it",
            remedy="Give the path of the file with the owner's age identity.",
        ) from error
    except UnicodeDecodeError as error:
        raise _identity_error(f"{path} is not text") from error
    lines = [line.strip() for line in content.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if len(found) != 1:
        raise _identity_error(f"{path} holds {len(found)} identities")
    _parse_identity(found[0])
    return found[0]


def check_recipients(recipients: Sequence[str]) -> None:
    """Checks that a model can be sealed to `recipients`, before it is trained.

    Raises:
        ConfigError: If there is none, one repeats, or one is no age X25519 recipient.
    """
    _parse_recipients(recipients)


def seal_model(
    arrays: Mapping[str, NDArray[np.generic]],
    *,
    metadata: Mapping[str, str],
    recipients: Sequence[str],
    path: Path,
) -> SealedModel:
    """Seals a model to its recipients and writes it to `path`, whole or not at all.

    Args:
        arrays: The arrays by name.
        metadata: Text kept beside them, under the same seal.
        recipients: age X25519 recipients, ``age1...``; each of them alone can open it.
        path: Replaced if it exists; its directory must exist.

    Raises:
        ConfigError: If a recipient is invalid, or there is none.
        StorageError: If the file cannot be written.
    """
    keys = _parse_recipients(recipients)
    content = safetensors.numpy.save(dict(arrays), metadata=dict(metadata))
    sealed = pyrage.encrypt(content, keys)
    try:
        _write_whole(path, sealed)
    except OSError as error:
        raise StorageError(
            f"cannot write the sealed model {path}: {error.strerror}",
            code="model-unwritable",
            remedy="Check that the directory exists, is writable and has space.",
        ) from error
    return SealedModel(
        path=path,
        sha256=hashlib.sha256(sealed).hexdigest(),
        size_bytes=len(sealed),
        recipients=tuple(recipients),
    )


def open_model(path: Path, *, identity: str) -> OpenedModel:
    """Returns the model sealed at `path`.

    Args:
        path: A file written by `seal_model`, or by ``age`` over safetensors.
        identity: One recipient's identity, ``AGE-SECRET-KEY-1...``.

    Raises:
        ConfigError: If the file is missing or the identity is malformed.
        StorageError: If the file is not in age's format (``model-not-age``), sealed to
            others (``model-not-for-identity``), altered or cut off
            (``model-damaged``), or holds no safetensors (``model-not-safetensors``).
    """
    return _parse_model(path, _unseal(path, identity))


def unseal_to_file(path: Path, *, identity: str, output: Path) -> OpenedModel:
    """Writes the model sealed at `path` in the clear, as its owner asked.

    Args:
        path: The sealed model.
        identity: One recipient's identity.
        output: Receives the safetensors file, mode 0600, whole or not at all; the
            same bytes that ``age --decrypt`` gives.

    Raises:
        ConfigError: As `open_model`, and if `output` exists.
        StorageError: As `open_model`, and if `output` cannot be written.
    """
    if output.exists():
        raise ConfigError(
            f"{output} exists",
            code="output-exists",
            expected="a new file",
            remedy="Choose another name, or remove it.",
        )
    content = _unseal(path, identity)
    opened = _parse_model(path, content)
    try:
        _write_whole(output, content)
    except OSError as error:
        raise StorageError(
            f"cannot write the opened model {output}: {error.strerror}",
            code="model-unwritable",
            remedy="Check that the directory exists, is writable and has space.",
        ) from error
    return opened


def _unseal(path: Path, identity: str) -> bytes:
    key = _parse_identity(identity)
    try:
        sealed = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(
            f"no sealed model {path}",
            code="model-missing",
            remedy="Give the path of a sealed model, or of a run that has ended.",
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot read the sealed model {path}: {error.strerror}",
            code="model-unreadable",
            remedy="Check the file's permissions and the disk.",
        ) from error
    return _decrypt(path, sealed, key)


def _parse_identity(identity: str) -> pyrage.x25519.Identity:
    # The message must never carry the text: it may be a secret with a typing error.
    if not identity.startswith(_IDENTITY_PREFIX):
        raise _identity_error("this is not an identity")
    try:
        return pyrage.x25519.Identity.from_str(identity)
    except pyrage.IdentityError:
        raise _identity_error("the identity is misspelt or cut off") from None


def _identity_error(what: str) -> ConfigError:
    return ConfigError(
        what,
        code="identity-invalid",
        expected=f"exactly one age X25519 identity, {_IDENTITY_PREFIX}...",
        remedy="Make one with age-keygen, or use the file the deployment made.",
    )


def _parse_recipients(recipients: Sequence[str]) -> list[pyrage.x25519.Recipient]:
    remedy = "Give the owner's age recipient; age-keygen -y prints it."
    if not recipients or len(set(recipients)) != len(recipients):
        raise ConfigError(
            "a model needs recipients to be sealed to",
            code="recipient-invalid",
            expected="at least one recipient, and none twice",
            got=f"{len(recipients)}, {len(set(recipients))} of them distinct",
            remedy=remedy,
        )
    keys = []
    for recipient in recipients:
        try:
            keys.append(pyrage.x25519.Recipient.from_str(recipient))
        except pyrage.RecipientError as error:
            # An identity put here by mistake is a secret and must not be shown.
            secret = recipient.upper().startswith(_IDENTITY_PREFIX)
            raise ConfigError(
                "a recipient of the model is malformed",
                code="recipient-invalid",
                expected="an age X25519 recipient, age1...",
                got="an identity, which is a secret" if secret else recipient,
                remedy=remedy,
            ) from error
    return keys


def _write_whole(path: Path, content: bytes) -> None:
    # mkstemp gives mode 0600 from the first moment on.
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".part"
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        # Also on Ctrl-C: a part of a model is never left behind.
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _decrypt(path: Path, sealed: bytes, key: pyrage.x25519.Identity) -> bytes:
    if not sealed.startswith(_AGE_MAGIC):
        raise StorageError(
            f"{path} is not a sealed model",
            code="model-not-age",
            expected="a file in age's binary format",
            remedy="Give the path of a sealed model.",
        )
    try:
        content: bytes = pyrage.decrypt(sealed, [key])
    except pyrage.DecryptError as error:
        # pyrage tells its reasons apart in words only. Should they change, the file
        # is still refused, under the code for damage.
        if str(error) == "No matching keys found":
            raise StorageError(
                f"{path} is not sealed to this identity",
                code="model-not-for-identity",
                expected=f"a model sealed to {key.to_public()}",
                remedy="Use the identity of one of the plan's recipients.",
            ) from error
        raise StorageError(
            f"{path} was altered or cut off after it was sealed",
            code="model-damaged",
            remedy="Fetch the sealed model again.",
        ) from error
    return content


def _parse_model(path: Path, content: bytes) -> OpenedModel:
    try:
        arrays = safetensors.numpy.load(content)
        # The library returns no metadata from bytes; it has checked the header by now.
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, KeyError, ValueError) as error:
        raise StorageError(
            f"{path} opens, but does not hold a model",
            code="model-not-safetensors",
            expected="arrays in safetensors format",
            remedy="Seal models with this program, or as safetensors.",
        ) from error
    return OpenedModel(arrays=arrays, metadata=metadata)
