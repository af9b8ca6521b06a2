"""``cloister plan check``: whether a plan fits, its hash, and who signed it."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.host_time import utc_now
from cloister.cli.output import write_json
from cloister.cli.signing import read_plan_file, signatures
from cloister.plan.plan import plan_hash


@click.command("check")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(*, plan_path: Path, as_json: bool) -> None:
    """Check that PLAN fits the schema, print its hash, and say who signed it."""
    file = read_plan_file(plan_path)
    digest = plan_hash(file.plan).hex()
    found = signatures(file, at=utc_now())
    if as_json:
        write_json(
            {
                "run": file.plan.run_id,
                "hash": digest,
                "simulated": file.plan.simulated,
                "signed": found.signed,
                "missing": found.missing,
            }
        )
        return
    click.echo(digest)
    click.echo(f"signed by  {', '.join(found.signed) or 'nobody'}", err=True)
    if found.missing:
        click.echo(f"missing    {', '.join(found.missing)}", err=True)
