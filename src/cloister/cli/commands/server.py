"""``cloister server``: the server node of a plan."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.commands._node_options import training_options
from cloister.cli.interpreter import become_node


@click.command("server")
@training_options
def command(
    *,
    plan_path: Path,
    site_path: Path | None,
    fresh: bool,
    as_json: bool,
    tethered: bool,
) -> None:
    """Start the server node: admits attested workers, aggregates, seals the model.

    It goes on from the state that it kept, if there is one.
    """
    become_node()
    # Only now may anything be imported that reads the environment.
    from cloister.cli.commands._server_main import run  # noqa: PLC0415

    run(plan_path, site_path, fresh=fresh, as_json=as_json, tethered=tethered)
