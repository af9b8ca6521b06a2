"""``cloister data info``: what a sealed data set says of itself."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from cloister.cli.data_report import check_planned, manifest_json, manifest_lines
from cloister.cli.output import write_json
from cloister.errors import ConfigError
from cloister.plan.plan import read_plan
from cloister.storage.sealed_data import read_sealed_data


@click.command("info")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--plan",
    "plan_path",
    metavar="PLAN",
    type=click.Path(path_type=Path),
    help="Check that it is what this plan pins.",
)
@click.option("--party", metavar="NAME", help="Whose data it is in the plan.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(
    *, file: Path, plan_path: Path | None, party: str | None, as_json: bool
) -> None:
    """Show what the sealed data set in FILE says of itself; no key is needed.

    That is signed by whom it names as its owner, and nothing says that this is the
    right one: compare with a plan, by --plan and --party. Records are not looked at;
    `cloister data verify` opens each.
    """
    if (plan_path is None) != (party is None):
        raise ConfigError(
            "it is not said whose data in which plan this should be",
            code="data-party-unsaid",
            expected="--plan and --party together, or neither",
            got="--plan alone" if party is None else "--party alone",
        )
    with closing(read_sealed_data(file)) as unopened:
        signed, size_bytes = unopened.signed, unopened.size_bytes
        planned = (
            check_planned(unopened, read_plan(plan_path), party)
            if plan_path is not None and party is not None
            else None
        )
    if as_json:
        said = manifest_json(signed, size_bytes=size_bytes)
        write_json({"file": str(file), **said, "plan": planned})
        return
    for line in manifest_lines(signed, size_bytes=size_bytes):
        click.echo(line)
    if planned is not None:
        click.echo(f"{file} is {planned} of {party}", err=True)
