"""``cloister server``: the server node of a plan."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.interpreter import become_node


@click.command("server")
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
    help="The server's site file  [default: parties/NAME/site.toml beside the plan]",
)
@click.option("--json", "as_json", is_flag=True, help="Write events to stdout.")
@click.option("--tethered", is_flag=True, help="Stop when standard input closes.")
def command(
    *, plan_path: Path, site_path: Path | None, as_json: bool, tethered: bool
) -> None:
    """Start the server node: admits attested workers, aggregates, seals the model."""
    become_node()
    # Only now may anything be imported that reads the environment.
    from cloister.cli.commands._server_main import run  # noqa: PLC0415

    run(plan_path, site_path, as_json=as_json, tethered=tethered)
