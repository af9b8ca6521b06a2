"""What can be wrong with a keyring, in words for its owner. No secret is in any."""

from __future__ import annotations

from pathlib import Path

from cloister.errors import ConfigError, StorageError


def keyring_exists(path: Path) -> StorageError:
    """Returns the error for a new keyring in the place of another."""
    return StorageError(
        "there is a keyring already",
        code="keyring-exists",
        expected=f"nothing at {path}",
        remedy="Use it. Keys that it sealed open with no other.",
    )


def keyring_missing(path: Path) -> StorageError:
    """Returns the error for a keyring that is not there."""
    return StorageError(
        "there is no keyring",
        code="keyring-missing",
        expected=f"a file {path}",
        remedy="Put back the newest copy, or correct [keyring] in custodian.toml."
        " Without it no key of this custodian can be had.",
    )


def keyring_unusable(path: Path, got: str) -> StorageError:
    """Returns the error for a file that cannot be read or written."""
    return StorageError(
        "cannot use the keyring",
        code="keyring-unusable",
        expected=f"to read and write {path} and its directory",
        got=got,
        remedy="See to the disk and the permissions, then try again.",
    )


def keyring_damaged(path: Path) -> StorageError:
    """Returns the error for a file that is no keyring, or no longer."""
    return StorageError(
        f"the keyring {path} is damaged",
        code="keyring-damaged",
        expected="the file as it was written",
        remedy="Put back the newest copy that is whole.",
    )


def keyring_foreign(path: Path, *, expected: str, got: str) -> StorageError:
    """Returns the error for the keyring of another party."""
    return StorageError(
        f"the keyring {path} is another party's",
        code="keyring-foreign",
        expected=expected,
        got=got,
        remedy="Correct [keyring] in custodian.toml.",
    )


def keyring_locked(path: Path) -> ConfigError:
    """Returns the error for what does not open a keyring."""
    return ConfigError(
        f"this does not open the keyring {path}",
        code="keyring-locked",
        expected="the passphrase, or the identity, that it was sealed with",
        got="another one",
        remedy="Try again. [keyring] in custodian.toml says which of the two is used.",
    )


def keyring_too_slow(path: Path) -> StorageError:
    """Returns the error for a keyring that a faster machine sealed to a passphrase.

    How much work a passphrase takes was measured there, and here is what is too much.
    """
    return StorageError(
        f"opening the keyring {path} would take this machine too long",
        code="keyring-too-slow",
        expected="at most some 16 seconds of work for its passphrase",
        got="a keyring that asks for more",
        remedy="It is not damaged, if a faster machine made it. Try again when this one"
        " does nothing else, or run the custodian there; to have it here, make a new"
        " custodian here, whose keyring fits this machine.",
    )


def exposed(path: Path, *, what: str, mode: int) -> StorageError:
    """Returns the error for a file that other users can reach."""
    return StorageError(
        f"other users can reach the {what} {path}",
        code="keyring-exposed",
        expected="mode 0600",
        got=f"mode {mode:04o}",
        remedy="chmod 600. If others had access, rotate every key.",
    )


def damaged_key(key_id: str) -> StorageError:
    """Returns the error for a sealed key that does not open."""
    return StorageError(
        "a sealed key does not open with the keyring",
        code="key-damaged",
        expected="a key that this keyring sealed",
        got=key_id,
        remedy="The keyring and the database must be of one custodian, and both the"
        " newest copies.",
    )


def other_generation(path: Path, *, register: int, keyring: int) -> StorageError:
    """Returns the error for a keyring and a register that do not belong together."""
    return StorageError(
        "the custodian's database and its keyring are not of one time",
        code="keyring-generation",
        expected=f"a database of generation {keyring}, as {path} is",
        got=f"generation {register}",
        remedy="One of the two is an older copy. Put back the newest of both; keys that"
        " were revoked since stay revoked.",
    )
