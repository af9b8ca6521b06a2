"""``cloister custodian keys rotate``: a new key for new plans."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.custodians import open_keys, open_register
from cloister.cli.hardening import harden_process
from cloister.cli.host_time import utc_now
from cloister.cli.output import write_json
from cloister.cli.places import read_custodian_place


@click.command("rotate")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("key", metavar="KEY")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(*, directory: Path, key: str, as_json: bool) -> None:
    """Make a new key in the place of KEY, and print what new plans call it.

    KEY is released on to the plans that name it.
    """
    harden_process()  # the keys are about to be in its memory
    place = read_custodian_place(directory)
    with open_register(place) as register:
        name = open_keys(place, register).rotate(key, at=utc_now())
    if as_json:
        write_json({"party": place.party, "key": name, "replaces": key})
    else:
        click.echo(name)
