"""``cloister custodian keys add``: a key comes into the custodian's keeping."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from cloister.cli.custodians import open_keys, open_register
from cloister.cli.hardening import harden_process
from cloister.cli.host_time import utc_now
from cloister.cli.output import write_json
from cloister.cli.places import read_custodian_place
from cloister.custody.key_material import read_key
from cloister.storage.keys import KeyKind


@click.command("add")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("kind", type=click.Choice(get_args(KeyKind)))
@click.option("--label", help="Your word for it.  [default: the kind]")
@click.option(
    "--from",
    "source",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Take in a key that you have: 32 bytes, or 64 hex digits; for a vault key an"
    " age identity.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(
    *,
    directory: Path,
    kind: KeyKind,
    label: str | None,
    source: Path | None,
    as_json: bool,
) -> None:
    """Make a key at the custodian in DIR, and print what the plan calls it.

    A plan has a data key as data_key, a state share as state_share, a vault key as
    recipient, each in the party's section.
    """
    harden_process()  # the keys are about to be in its memory
    place = read_custodian_place(directory)
    secret = None if source is None else read_key(source, kind=kind)
    with open_register(place) as register:
        keys = open_keys(place, register)
        name = keys.add(kind, label=label or kind, at=utc_now(), secret=secret)
    if as_json:
        write_json({"party": place.party, "kind": kind, "key": name})
        return
    click.echo(name)
    if source is not None:
        click.echo(f"{source} is as it was; remove it where it should not be", err=True)
