"""``cloister data seal``: a party's records become a sealed data set."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.commands.data._seal_options import seal_options
from cloister.cli.data_report import seal_and_show
from cloister.cli.hardening import harden_process
from cloister.cli.places import read_custodian_place
from cloister.storage.formats import FORMATS, HeldOut, open_format

_FORMATS = "\n".join(f"  {name:<10}{reads}" for name, reads in FORMATS.items())
_HELP = f"""Seal the records in SOURCE, and print what the plan says of them.

Each is encrypted with the party's data key, bound to its place, and the whole is
signed with the party's key. Both stay at the custodian. Nothing is written in the
clear, and nothing is left behind where it fails.

\b
FORMAT    SOURCE
{_FORMATS}
"""


@click.command("seal", help=_HELP)
@click.argument("format_name", metavar="FORMAT", type=click.Choice(tuple(FORMATS)))
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
@seal_options
def command(  # noqa: PLR0913 - one argument an option
    *,
    format_name: str,
    source: Path,
    output: Path,
    custodian: Path,
    key: str | None,
    held_out: HeldOut | None,
    as_json: bool,
) -> None:
    """Seals what a format reads."""
    harden_process()  # the data key and the party's key are about to be in its memory
    place = read_custodian_place(custodian)
    stream = open_format(format_name, source, held_out=held_out)
    seal_and_show(place, stream, output, key=key, as_json=as_json)
    click.echo(f"{source} is as it was; remove it where it should not be", err=True)
