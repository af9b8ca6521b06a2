"""Asks a person before something is done that they alone can decide."""

from __future__ import annotations

import sys

import click

from cloister.errors import ConfigError


def ask(question: str, *, yes: bool) -> None:
    """Returns if the answer is yes; without a question where `yes` says so already.

    Raises:
        ConfigError: If there is no terminal to ask at.
        click.Abort: If the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            "there is nobody to ask",
            code="nobody-to-ask",
            expected="a terminal, or --yes",
            got="standard input that is no terminal",
            remedy="Read what it says above; then say --yes.",
        )
    click.confirm(question, abort=True, err=True)
