"""``cloister plan withdraw``: takes a party's consent back."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.asking import ask
from cloister.cli.host_time import utc_now
from cloister.cli.output import write_json
from cloister.cli.places import read_custodian_place
from cloister.cli.signing import read_plan_file, withdraw
from cloister.plan.plan import plan_hash


@click.command("withdraw")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--custodian",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="The custodian's directory.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(*, plan_path: Path, directory: Path, yes: bool, as_json: bool) -> None:
    """Take back a party's consent to PLAN.

    Its custodian warrants no node of PLAN from then on, and renews no warrant. One that
    was given ends by its own time.
    """
    file, place = read_plan_file(plan_path), read_custodian_place(directory)
    digest = plan_hash(file.plan).hex()
    click.echo(
        f"{place.party} gives no more warrants for run {file.plan.run_id}, plan"
        f" {digest}.\nA node that has one keeps it for {place.site.warrant_hours:g}"
        " hours at most: stop the node to end at once.",
        err=True,
    )
    ask(f"Withdraw the consent of {place.party}?", yes=yes)
    withdraw(file, place, at=utc_now())
    if as_json:
        write_json({"run": file.plan.run_id, "hash": digest, "withdrawn": place.party})
    else:
        click.echo(f"withdrawn by {place.party}", err=True)
