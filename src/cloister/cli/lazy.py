"""Groups of commands that import a command only to run it.

So ``--help`` answers at once, and a node imports nothing before its environment is
clean.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click
from typing_extensions import override


class LazyGroup(click.Group):
    """A group whose commands are modules of one package.

    Args:
        name: The group's name.
        package: Has a module with a `command` for each of them, of its name with
            underscores for dashes.
        summaries: Name and first line of each command.
        help: What the group is for.
        context_settings: As for `click.Group`.
    """

    def __init__(
        self,
        name: str,
        *,
        package: str,
        summaries: Mapping[str, str],
        help: str,  # noqa: A002 - click's word
        context_settings: dict[str, object] | None = None,
    ) -> None:
        super().__init__(name, help=help, context_settings=context_settings)
        self._package = package
        self._summaries = dict(sorted(summaries.items()))

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._summaries)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._summaries:
            return None
        module = importlib.import_module(
            f"{self._package}.{cmd_name.replace('-', '_')}"
        )
        command: click.Command = module.command
        return command

    @override
    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))
