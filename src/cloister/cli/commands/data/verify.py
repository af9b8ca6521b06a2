"""``cloister data verify``: every record of a sealed data set, opened once."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click
from rich.console import Console

from cloister.cli.data_progress import showing_records
from cloister.cli.data_report import check_planned
from cloister.cli.data_sealing import data_key, owner_of
from cloister.cli.hardening import harden_process
from cloister.cli.output import write_json
from cloister.cli.places import read_custodian_place
from cloister.plan.plan import read_plan
from cloister.storage.sealed_data import read_sealed_data


@click.command("verify")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--custodian",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="The party's custodian, which has the data key.",
)
@click.option(
    "--plan",
    "plan_path",
    metavar="PLAN",
    type=click.Path(path_type=Path),
    help="Check also that it is what this plan pins for the custodian's party.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(
    *, file: Path, custodian: Path, plan_path: Path | None, as_json: bool
) -> None:
    """Open every record of the sealed data set in FILE, as its owner.

    It must be signed by the custodian's party. A record that was altered, that is not
    in its place, or that is missing is named by its split and number.
    """
    harden_process()  # the data key and records are about to be in its memory
    place = read_custodian_place(custodian)
    console = Console(stderr=True, highlight=False)
    with closing(read_sealed_data(file)) as unopened:
        digest, manifest = unopened.signed.digest, unopened.manifest
        unopened.check_owner(owner=owner_of(place), key=manifest.key)
        planned = (
            None
            if plan_path is None
            else check_planned(unopened, read_plan(plan_path), place.party)
        )
        records = unopened.open(data_key(place, manifest.key), schema=manifest.schema)
        total = manifest.total
        with showing_records("verifying", total=total, console=console) as tell:
            verified = records.verify(tell)
    if as_json:
        write_json(
            {
                "file": str(file),
                "party": place.party,
                "data": digest,
                "records": verified,
                "plan": planned,
            }
        )
        return
    click.echo(digest)
    click.echo(
        f"{file}: {verified} records, each as {place.party} sealed it"
        + (f"; {planned} of {place.party}" if planned else ""),
        err=True,
    )
