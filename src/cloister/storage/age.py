"""Keys and encryption in the age format (https://age-encryption.org/v1).

An identity, ``AGE-SECRET-KEY-1...``, is the secret; its recipient, ``age1...``, is
public. Only X25519 keys are used. No message here ever carries an identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyrage  # type: ignore[import-untyped]

from cloister.errors import ConfigError, StorageError

_MAGIC = b"age-encryption.org/v1\n"
_IDENTITY_PREFIX = "AGE-SECRET-KEY-1"
# age-keygen writes about 190 bytes; comments may add some.
_IDENTITY_FILE_BYTES = 64 * 1024


def new_identity() -> tuple[str, str]:
    """Returns a fresh X25519 identity (secret) and its recipient (public), as text."""
    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


def recipient_of(identity: str) -> str:
    """Returns the recipient of an identity: its public half, and its name in a plan.

    Raises:
        ConfigError: If the identity is malformed.
    """
    return str(_parse_identity(identity).to_public())


def read_identity(path: Path) -> str:
    """Returns the one identity in a file as `age-keygen` writes it.

    Args:
        path: A text file; empty lines and lines that start with ``#`` are skipped.

    Raises:
        ConfigError: If the file cannot be read, or holds anything but one identity.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_IDENTITY_FILE_BYTES)
    except OSError as error:
        raise ConfigError(
            f"cannot read the identity file {path}: {error.strerror}",
            code="identity-missing",
            expected="a file as age-keygen writes it",
            remedy="Give the path of the file with the owner's age identity.",
        ) from error
    try:
        content: str | None = raw.decode()
    except UnicodeDecodeError:
        content = None
    # Not in the handler: that exception carries the whole text.
    if content is None:
        raise _identity_error(f"{path} is not text")
    lines = [line.strip() for line in content.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if len(found) != 1:
        raise _identity_error(f"{path} holds {len(found)} identities")
    _parse_identity(found[0])
    return found[0]


def check_recipients(recipients: Sequence[str]) -> None:
    """Checks that something can be sealed to `recipients`, before the work is done.

    Raises:
        ConfigError: If there is none, one repeats, or one is no age X25519 recipient.
    """
    _parse_recipients(recipients)


def encrypt(content: bytes, recipients: Sequence[str]) -> bytes:
    """Returns `content` encrypted so that each recipient alone can open it.

    Raises:
        ConfigError: See `check_recipients`.
    """
    sealed: bytes = pyrage.encrypt(content, _parse_recipients(recipients))
    return sealed


def decrypt(sealed: bytes, *, identity: str, path: Path) -> bytes:
    """Returns what was encrypted to the recipient of `identity`.

    Args:
        sealed: A file in age's binary format.
        identity: The recipient's secret.
        path: Where `sealed` was read, for messages.

    Raises:
        ConfigError: If the identity is malformed.
        StorageError: If the file is not in age's format (``model-not-age``), sealed to
            others (``model-not-for-identity``), or altered or cut off
            (``model-damaged``).
    """
    key = _parse_identity(identity)
    if not sealed.startswith(_MAGIC):
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
