"""The options that every node's command has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--plan",
        "plan_path",
        type=click.Path(path_type=Path),
        default=Path("plan.toml"),
        show_default=True,
        help="The plan.",
    ),
    click.option(
        "--site",
        "site_path",
        type=click.Path(path_type=Path),
        help="The node's site file  [default: parties/NAME/site.toml beside the plan]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Write events to stdout."),
    click.option("--tethered", is_flag=True, help="Stop when standard input closes."),
)


def node_options(command: Command) -> Command:
    """Gives a command ``--plan``, ``--site``, ``--json`` and ``--tethered``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
