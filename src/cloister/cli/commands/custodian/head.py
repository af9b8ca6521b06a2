"""``cloister custodian head``: the party's word on how far a run's log had come."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.custodians import open_register
from cloister.cli.hardening import harden_process
from cloister.cli.output import write_lines
from cloister.cli.places import read_custodian_place
from cloister.custody.audit_export import head_of_run, sign_head
from cloister.custody.party_key import read_party_key


@click.command("head")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("run_id", metavar="RUN_ID")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where to.  [default: standard output]",
)
def command(*, directory: Path, run_id: str, output: Path | None) -> None:
    """Sign how far the audit log of the run RUN_ID (NAME/RUN) had come.

    An auditor proves with it that the log was not cut:
    cloister audit verify RUN_DIR --head FILE
    """
    harden_process()  # the party's key is about to be in its memory
    place = read_custodian_place(directory)
    key = read_party_key(place.key_path)
    with open_register(place) as register:
        head = head_of_run(register, run_id)
    write_lines([sign_head(head, key=key)], output)
