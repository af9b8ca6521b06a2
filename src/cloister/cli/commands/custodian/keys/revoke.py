"""``cloister custodian keys revoke``: a key is destroyed."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.asking import ask
from cloister.cli.custodians import open_keys, open_register
from cloister.cli.hardening import harden_process
from cloister.cli.host_time import utc_now
from cloister.cli.output import write_json
from cloister.cli.places import read_custodian_place


@click.command("revoke")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("key", metavar="KEY")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(*, directory: Path, key: str, yes: bool, as_json: bool) -> None:
    """Destroy KEY at the custodian in DIR, and seal all others anew.

    An older copy of the database does not open with the keyring of after that.
    """
    harden_process()  # the keys are about to be in its memory
    place = read_custodian_place(directory)
    with open_register(place) as register:
        keys = open_keys(place, register)
        click.echo(
            f"Once it is revoked, {place.party} has {key} no more, and what only\n"
            "it opens stays closed. Nodes that have it keep it until they end.",
            err=True,
        )
        ask(f"Revoke {key}?", yes=yes)
        keys.revoke(key, at=utc_now())
    if as_json:
        write_json({"party": place.party, "revoked": key})
    else:
        click.echo("revoked", err=True)
