"""``cloister model``: opens what a run sealed."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.hardening import harden_process
from cloister.cli.output import write_json
from cloister.storage.model_vault import read_identity, unseal_to_file

SEALED_NAME = "model.safetensors.age"


@click.group("model")
def command() -> None:
    """Open a sealed model."""


@command.command("open")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--identity",
    "identity_path",
    type=click.Path(path_type=Path),
    required=True,
    help="An age identity file of a recipient.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Where the opened model goes (safetensors).",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def open_command(
    *, run_dir: Path, identity_path: Path, output: Path, as_json: bool
) -> None:
    """Open the model that the run in RUN_DIR sealed.

    The public age tool does the same: age -d -i KEY -o FILE model.safetensors.age
    """
    harden_process()  # the owner's identity is about to be in its memory
    opened = unseal_to_file(
        run_dir / SEALED_NAME, identity=read_identity(identity_path), output=output
    )
    values = sum(array.size for array in opened.arrays.values())
    if as_json:
        write_json(
            {
                "output": str(output),
                "arrays": len(opened.arrays),
                "values": values,
                "metadata": dict(opened.metadata),
            }
        )
        return
    click.echo(f"{output}: {len(opened.arrays)} arrays, {values} values", err=True)
    for name, value in sorted(opened.metadata.items()):
        click.echo(f"  {name}: {value}", err=True)
