"""``cloister custodian serve``: a custodian at work."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.interpreter import become_node


@click.command("serve")
@click.argument(
    "path",
    metavar="[DIR/custodian.toml]",
    type=click.Path(path_type=Path),
    default=Path("custodian.toml"),
)
@click.option("--json", "as_json", is_flag=True, help="Write events to stdout.")
@click.option("--tethered", is_flag=True, help="Stop when standard input closes.")
def command(*, path: Path, as_json: bool, tethered: bool) -> None:
    """Warrant the nodes of a party that run a plan it signed, until Ctrl-C.

    Plans may be signed and withdrawn meanwhile.
    """
    become_node()
    # Only now may anything be imported that reads the environment.
    from cloister.cli.commands.custodian._serve_main import run  # noqa: PLC0415

    run(path, as_json=as_json, tethered=tethered)
