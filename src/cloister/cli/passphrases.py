"""The passphrase of a keyring: typed by a person, or in a file; never an argument.

Arguments and environment variables of a process are shown to others.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Final

import click

from cloister.custody.keyring import Passphrase
from cloister.errors import ConfigError
from cloister.storage.keys import Secret

# scrypt makes each guess cost a second; a short one is guessed all the same.
SHORTEST: Final = 12
_LONGEST_BYTES: Final = 4096
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def ask_passphrase(path: Path) -> Passphrase:
    """Returns what a person types as the passphrase of the keyring at `path`.

    Raises:
        ConfigError: If there is no terminal to ask at.
    """
    _check_terminal()
    text: str = click.prompt(f"Passphrase of {path}", hide_input=True, err=True)
    return _passphrase(text)


def new_passphrase() -> Passphrase:
    """Returns a passphrase that a person types twice.

    Raises:
        ConfigError: If there is no terminal to ask at, or it is too short.
    """
    _check_terminal()
    text: str = click.prompt(
        "Passphrase for the keyring",
        hide_input=True,
        confirmation_prompt=True,
        err=True,
    )
    if len(text) < SHORTEST:
        raise ConfigError(
            "the passphrase is too short",
            code="passphrase-short",
            expected=f"at least {SHORTEST} characters",
            remedy="Six words chosen by dice are good, and can be remembered.",
        )
    return _passphrase(text)


def read_passphrase(path: Path) -> Passphrase:
    """Returns the passphrase in a file, on one line.

    Raises:
        ConfigError: If it cannot be read, is open to other users, or is no passphrase.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise _unusable(path, "no regular file")
        if mode & _OTHERS:
            raise _unusable(path, f"mode {stat.S_IMODE(mode):04o}")
        with path.open("rb") as file:
            content = file.read(_LONGEST_BYTES + 1)
    except OSError as error:
        raise _unusable(path, error.strerror or "an error") from error
    try:
        line: str | None = content.decode().removesuffix("\n")
    except UnicodeDecodeError:
        line = None
    # Not in the handler: that exception carries the whole text.
    if line is None:
        raise _unusable(path, "no text")
    if not line or "\n" in line or len(content) > _LONGEST_BYTES:
        raise _unusable(path, "an empty file, or more than one line")
    return _passphrase(line)


def _passphrase(text: str) -> Passphrase:
    return Passphrase(text=Secret(text.encode()))


def _check_terminal() -> None:
    if not sys.stdin.isatty():
        raise ConfigError(
            "there is nobody to ask for the passphrase",
            code="nobody-to-ask",
            expected="a terminal, or [keyring] identity or passphrase_file in"
            " custodian.toml",
            got="standard input that is no terminal",
        )


def _unusable(path: Path, got: str) -> ConfigError:
    return ConfigError(
        f"cannot use the passphrase in {path}",
        code="passphrase-unusable",
        expected="one line of text, in a file of mode 0600",
        got=got,
        remedy="It is [keyring] passphrase_file in custodian.toml.",
    )
