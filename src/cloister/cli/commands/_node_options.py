"""The options that the commands of nodes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
_TRAINING_OPTIONS = (
    click.option(
        "--fresh",
        is_flag=True,
        help="Begin anew; what is there is set aside under a dated name.",
    ),
)
_RECIPIENT_OPTIONS = (
    click.option("--party", required=True, help="The recipient, as the plan names it."),
    click.option(
        "--model",
        "model_path",
        type=click.Path(path_type=Path),
        help="The sealed model, its audit log beside it  [default: in the run's"
        " directory]",
    ),
)


def node_options(command: Command) -> Command:
    """Gives a command ``--plan``, ``--site``, ``--json`` and ``--tethered``."""
    return _with(_OPTIONS, command)


def training_options(command: Command) -> Command:
    """Gives a command ``--fresh``, and what every node's command has."""
    return node_options(_with(_TRAINING_OPTIONS, command))


def recipient_options(command: Command) -> Command:
    """Gives a command ``--party``, ``--model``, and what every node's command has."""
    return _with(_RECIPIENT_OPTIONS, node_options(command))


def _with(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
