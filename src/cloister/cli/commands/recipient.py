"""``cloister recipient``: one party's recipient node."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.commands._node_options import recipient_options
from cloister.cli.interpreter import become_node


@click.command("recipient")
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
    """Open the sealed model in an attested node; nothing is written in the clear.

    It is evaluated if the plan pins data for this party: on that data, and no other.
    """
    become_node()
    # Only now may anything be imported that reads the environment.
    from cloister.cli.commands._recipient_main import Order, run  # noqa: PLC0415

    run(
        Order(
            plan_path=plan_path, party=party, site_path=site_path, model_path=model_path
        ),
        must_evaluate=False,
        as_json=as_json,
        tethered=tethered,
    )
