"""The README's table of commands is what the program has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from cloister.cli.main import cloister

README = Path(__file__).parents[3] / "README.md"


def commands(command: click.Command, *, name: str) -> Iterator[str]:
    """Yields the full name of every command that does something."""
    if not isinstance(command, click.Group):
        yield name
        return
    context = click.Context(command)
    for part in command.list_commands(context):
        below = command.get_command(context, part)
        assert below is not None
        yield from commands(below, name=f"{name} {part}")


def test_the_readme_lists_every_command_and_no_other() -> None:
    table = re.findall(r"^\| `(cloister [^`]*)` \|", README.read_text(), re.MULTILINE)
    # Words in lower case, up to what is the user's to give.
    listed = [re.match(r"[a-z -]*[a-z]", row.split(" --")[0]) for row in table]
    assert sorted(it.group() for it in listed if it) == sorted(
        commands(cloister, name="cloister")
    )
