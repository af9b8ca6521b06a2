"""``cloister custodian keys list``: which keys a custodian keeps."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from cloister.cli.custodians import open_register
from cloister.cli.output import write_json
from cloister.cli.places import read_custodian_place
from cloister.cli.register_tables import KEY_COLUMNS, json_of_key, key_cells, show_table


@click.command("list")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(*, directory: Path, as_json: bool) -> None:
    """Show the keys of the custodian in DIR; none is opened for it."""
    place = read_custodian_place(directory)
    with open_register(place) as register:
        rows = register.kept_keys()
    if as_json:
        write_json({"party": place.party, "keys": [json_of_key(row) for row in rows]})
    else:
        console = Console(stderr=True, highlight=False)
        show_table(console, "keys", KEY_COLUMNS, [key_cells(row) for row in rows])
