"""``cloister custodian audit``: the custodian's records, for auditors."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.custodians import open_register
from cloister.cli.hardening import harden_process
from cloister.cli.output import write_lines
from cloister.cli.places import read_custodian_place
from cloister.custody.audit_export import export_audit
from cloister.custody.party_key import read_party_key


@click.command("audit")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where to.  [default: standard output]",
)
def command(*, directory: Path, output: Path | None) -> None:
    """Write all that the custodian in DIR decided, signed with the party's key.

    Check it with: cloister audit verify FILE --key PARTY=ed25519:...
    """
    harden_process()  # the party's key is about to be in its memory
    place = read_custodian_place(directory)
    key = read_party_key(place.key_path)
    with open_register(place) as register:
        write_lines(export_audit(register, key=key), output)
