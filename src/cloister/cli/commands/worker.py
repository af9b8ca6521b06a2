"""``cloister worker``: one party's worker node."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.interpreter import become_node


@click.command("worker")
@click.option("--party", required=True, help="The party, as the plan names it.")
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    default=Path("plan.toml"),
    show_default=True,
    help="The plan.",
)
@click.option(
    "--site",
    "site_path",
    type=click.Path(path_type=Path),
    help="The worker's site file  [default: parties/NAME/site.toml beside the plan]",
)
@click.option("--json", "as_json", is_flag=True, help="Write events to stdout.")
@click.option("--tethered", is_flag=True, help="Stop when standard input closes.")
def command(
    *,
    party: str,
    plan_path: Path,
    site_path: Path | None,
    as_json: bool,
    tethered: bool,
) -> None:
    """Start a worker node: attests to the server and trains on the party's data."""
    become_node()
    # Only now may anything be imported that reads the environment.
    from cloister.cli.commands._worker_main import run  # noqa: PLC0415

    run(plan_path, party, site_path, as_json=as_json, tethered=tethered)
