"""``cloister model open``: opens what a run sealed to its recipients."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.hardening import harden_process
from cloister.cli.output import write_json
from cloister.cli.places import GRAPH_NAME, MODEL_NAME
from cloister.errors import ConfigError
from cloister.storage.age_files import unseal_bytes
from cloister.storage.model_vault import read_identity, unseal_to_file

_GRAPH_SUFFIX = ".pt2.age"


@click.command("open")
@click.argument("sealed", metavar="RUN_DIR", type=click.Path(path_type=Path))
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
    help="Where the opened file goes.",
)
@click.option("--graph", is_flag=True, help="Open the run's graph, not its model.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(
    *, sealed: Path, identity_path: Path, output: Path, graph: bool, as_json: bool
) -> None:
    """Open the model that the run in RUN_DIR sealed, or the sealed file RUN_DIR.

    The public age tool does the same: age -d -i KEY -o FILE model.safetensors.age
    """
    harden_process()  # the owner's identity is about to be in its memory
    path = _sealed_file(sealed, graph=graph)
    identity = read_identity(identity_path)
    if path.name.endswith(_GRAPH_SUFFIX):
        size = unseal_bytes(path, identity=identity, output=output)
        if as_json:
            write_json({"output": str(output), "size_bytes": size})
        else:
            click.echo(f"{output}: a graph of {size} bytes", err=True)
        return
    opened = unseal_to_file(path, identity=identity, output=output)
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


def _sealed_file(sealed: Path, *, graph: bool) -> Path:
    """Returns the file to open: the one given, or the run's."""
    if not sealed.is_file():
        return sealed / (GRAPH_NAME if graph else MODEL_NAME)
    if graph:
        raise ConfigError(
            "--graph is for a run's directory",
            code="graph-unused",
            expected="a run directory, or a sealed file without --graph",
            got=str(sealed),
        )
    return sealed
