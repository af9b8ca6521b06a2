"""``cloister data import-plinius``: Plinius' records become a sealed data set."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.commands.data._seal_options import seal_options
from cloister.cli.data_report import seal_and_show
from cloister.cli.hardening import harden_process
from cloister.cli.places import read_custodian_place
from cloister.storage.formats import HeldOut
from cloister.storage.plinius import open_plinius, read_plinius_key


@click.command("import-plinius")
@click.argument("images", metavar="IMAGES", type=click.Path(path_type=Path))
@click.argument("labels", metavar="LABELS", type=click.Path(path_type=Path))
@click.option(
    "--key-file",
    metavar="KEY",
    type=click.Path(path_type=Path),
    required=True,
    help="What they are encrypted with: 16 bytes, or 32 hex digits.",
)
@seal_options
def command(  # noqa: PLR0913 - one argument an option
    *,
    images: Path,
    labels: Path,
    key_file: Path,
    output: Path,
    custodian: Path,
    key: str | None,
    held_out: HeldOut | None,
    as_json: bool,
) -> None:
    """Seal the records in IMAGES and LABELS, which Plinius encrypted.

    Each is opened with KEY, checked, and sealed with the party's data key, as `cloister
    data seal` does it. Where one does not open, the whole is refused, the record is
    named, and nothing is left behind. The files do not say which records are held out:
    say --held-out.
    """
    harden_process()  # three keys are about to be in its memory
    place = read_custodian_place(custodian)
    stream = open_plinius(
        images, labels, key=read_plinius_key(key_file), held_out=held_out
    )
    seal_and_show(place, stream, output, key=key, as_json=as_json)
    click.echo(
        f"{images}, {labels} and {key_file} are as they were; remove them where they"
        " should not be",
        err=True,
    )
