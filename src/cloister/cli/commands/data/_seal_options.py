"""The options of every command that seals records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from typing_extensions import override

from cloister.storage.formats import HeldOut

Command = TypeVar("Command", bound=Callable[..., Any])


class _HeldOutType(click.ParamType[HeldOut]):
    """A number of records, or ``all`` of them."""

    name = "N|all"

    @override
    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> HeldOut:
        if value == "all":
            return "all"
        text = str(value)
        # Nineteen digits are more records than there are, and no work to read.
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            self.fail(f"{text[:40]!r} is neither a number of records nor 'all'")
        return int(text)


_OPTIONS = (
    click.option(
        "-o",
        "--output",
        metavar="FILE",
        type=click.Path(path_type=Path),
        required=True,
        help="The sealed data set; a new file.",
    ),
    click.option(
        "--custodian",
        metavar="DIR",
        type=click.Path(path_type=Path),
        required=True,
        help="The party's custodian: it has the data key, and the key that signs.",
    ),
    click.option(
        "--key",
        metavar="NAME",
        help="Label or name of the data key.  [default: the only active one]",
    ),
    click.option(
        "--held-out",
        metavar="N|all",
        type=_HeldOutType(),
        help="Hold out the last N records of a source without a test set; or all.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Write the result as JSON."),
)


def seal_options(command: Command) -> Command:
    """Gives a command what says from whose keys, into which file, and which split."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
