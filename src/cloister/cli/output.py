"""What commands say: for people on stderr, for machines on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from cloister.cli.exit_codes import exit_code_of
from cloister.errors import CloisterError, StorageError, VerificationError

Json = dict[str, object]


def error_object(error: CloisterError) -> Json:
    """Returns an error as machines read it."""
    return {
        "code": error.code,
        "what": error.what,
        "expected": error.expected,
        "got": error.got,
        "remedy": error.remedy,
        "step": error.step if isinstance(error, VerificationError) else None,
        "exit_code": int(exit_code_of(error)),
    }


def show_error(error: CloisterError, *, as_json: bool) -> None:
    """Shows an error: what is wrong, expected, got, and what to do."""
    if as_json:
        write_json({"error": error_object(error)})
    click.echo(f"error: {error.what}", err=True)
    for label, text in (
        ("expected", error.expected),
        ("got", error.got),
        ("to do", error.remedy),
    ):
        if text:
            click.echo(f"  {label + ':':<10}{text}", err=True)


def write_lines(lines: Iterable[bytes], path: Path | None) -> None:
    """Writes lines to a new file, or on stdout.

    Raises:
        StorageError: If the file cannot be written, or is there already.
    """
    if path is None:
        sys.stdout.buffer.writelines(lines)
        sys.stdout.buffer.flush()
        return
    # Before the file is made: if there is nothing to write, none is left behind.
    content = b"".join(lines)
    try:
        with path.open("xb") as file:
            file.write(content)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}",
            code="output-unwritable",
            expected="a new file in a directory that can be written to",
            got=error.strerror or "an error",
        ) from error


def write_json(value: Json) -> None:
    """Writes one JSON object as one line on stdout."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()
