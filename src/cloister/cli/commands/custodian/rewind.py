"""``cloister custodian rewind``: an operator lets a run go back."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.asking import ask
from cloister.cli.custodians import open_register
from cloister.cli.host_time import utc_now
from cloister.cli.output import write_json
from cloister.cli.places import read_custodian_place


@click.command("rewind")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("run_id", metavar="RUN_ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(*, directory: Path, run_id: str, yes: bool, as_json: bool) -> None:
    """Forget how far the run RUN_ID (NAME/RUN) had come, for one party.

    The custodian notices a rolled-back run by that. Until the next mark it accepts
    whatever state the server starts with, an old one too. Epochs stay.
    """
    place = read_custodian_place(directory)
    with open_register(place) as register:
        mark = register.mark(run_id)
        known = (
            f"round {mark.round}, state {mark.state.hex()}" if mark else "no mark yet"
        )
        click.echo(
            f"{place.party} knows of run {run_id}: {known}.\n"
            "Once that is forgotten, the party no longer notices if the run is put back"
            " to an\nolder state, or started again from the beginning. Do it only if"
            " the newest state is\nlost, and you know what the run goes on from.",
            err=True,
        )
        ask(f"Forget the mark of {run_id}?", yes=yes)
        forgotten = register.rewind(run_id, at=utc_now())
    if as_json:
        write_json(
            {
                "run": run_id,
                "party": place.party,
                "forgotten_round": forgotten.round if forgotten else None,
            }
        )
    else:
        click.echo(
            "forgotten" if forgotten else "there was nothing to forget", err=True
        )
