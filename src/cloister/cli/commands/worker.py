"""``cloister worker``: one party's worker node."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.commands._node_options import training_options
from cloister.cli.interpreter import become_node


@click.command("worker")
@click.option("--party", required=True, help="The party, as the plan names it.")
@training_options
def command(
    *,
    party: str,
    plan_path: Path,
    site_path: Path | None,
    fresh: bool,
    as_json: bool,
    tethered: bool,
) -> None:
    """Start a worker node: attests to the server and trains on the party's data."""
    become_node()
    # Only now may anything be imported that reads the environment.
    from cloister.cli.commands._worker_main import run  # noqa: PLC0415

    run(plan_path, party, site_path, fresh=fresh, as_json=as_json, tethered=tethered)
