"""``cloister model predict``: a recipient's node predicts on its party's records."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.commands._node_options import recipient_options
from cloister.cli.interpreter import become_node


@click.command("predict")
@recipient_options
@click.option(
    "--data",
    "data_path",
    type=click.Path(path_type=Path),
    required=True,
    help="What the party sealed under its data key; the split held-out is used.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Where the sealed predictions go (safetensors, in age's format).",
)
def command(  # noqa: PLR0913 - one for each option
    *,
    party: str,
    data_path: Path,
    output: Path,
    model_path: Path | None,
    plan_path: Path,
    site_path: Path | None,
    as_json: bool,
    tethered: bool,
) -> None:
    """Predict on sealed records in an attested node, for PARTY's predictions_to alone.

    Model, records and predictions are open in that node's memory and nowhere else.
    """
    become_node()
    # Only now may anything be imported that reads the environment.
    from cloister.cli.commands._predict_main import run  # noqa: PLC0415
    from cloister.cli.commands._recipient_main import Order  # noqa: PLC0415

    run(
        Order(
            plan_path=plan_path, party=party, site_path=site_path, model_path=model_path
        ),
        data=data_path,
        output=output,
        as_json=as_json,
        tethered=tethered,
    )
