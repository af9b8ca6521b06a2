"""``cloister model evaluate``: a recipient's node evaluates the sealed model."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.commands._node_options import recipient_options
from cloister.cli.interpreter import become_node


@click.command("evaluate")
@recipient_options
def command(
    *,
    party: str,
    model_path: Path | None,
    plan_path: Path,
    site_path: Path | None,
    as_json: bool,
    tethered: bool,
) -> None:
    """Print the sealed model's metrics on the records that the plan pins for PARTY.

    Model and records are open in the memory of an attested node alone.
    """
    become_node()
    # Only now may anything be imported that reads the environment.
    from cloister.cli.commands._recipient_main import Order, run  # noqa: PLC0415

    run(
        Order(
            plan_path=plan_path, party=party, site_path=site_path, model_path=model_path
        ),
        must_evaluate=True,
        as_json=as_json,
        tethered=tethered,
    )
