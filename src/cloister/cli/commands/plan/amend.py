"""``cloister plan amend``: the text of a plan that takes over another one's run."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.amending import check_stopped, log_beside
from cloister.cli.custodians import open_register
from cloister.cli.output import write_json
from cloister.cli.places import CustodianPlace, read_custodian_place
from cloister.cli.signing import read_plan_file
from cloister.errors import ConfigError, StorageError
from cloister.plan.amendment import successor_text
from cloister.plan.digest import format_digest
from cloister.plan.plan import Plan, plan_hash
from cloister.ratls.mark import Mark


@click.command("amend")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--custodian",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="A custodian that knows how far the run has come.",
)
@click.option(
    "--log",
    "log_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The run's audit log  [default: where the server beside PLAN writes it]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A new file for the successor  [default: standard output]",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(
    *,
    plan_path: Path,
    directory: Path,
    log_path: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Write a successor of PLAN, to be edited, and signed by all again.

    It goes on from the state that the custodian last heard of. The run's audit log must
    say that the server stopped there: one that was killed has come further.
    """
    file, place = read_plan_file(plan_path), read_custodian_place(directory)
    mark = check_stopped(
        file.plan,
        _mark(place, file.plan),
        log_path or log_beside(plan_path, file.plan),
    )
    text = successor_text(file.text, file.plan, state=mark.state, round=mark.round)
    if output is not None:
        _write_new(output, text)
    if as_json:
        write_json(
            {
                "run": file.plan.run_id,
                "predecessor": format_digest(plan_hash(file.plan)),
                "state": format_digest(mark.state),
                "round": mark.round,
                "output": None if output is None else str(output),
                "text": text if output is None else None,
            }
        )
    elif output is None:
        click.echo(text, nl=False)
    else:
        click.echo(
            f"wrote {output}, going on after round {mark.round}; edit it, then:"
            f" cloister plan sign {output}",
            err=True,
        )


def _mark(place: CustodianPlace, plan: Plan) -> Mark:
    with open_register(place) as register:
        mark = register.mark(plan.run_id)
    if mark is None:
        raise ConfigError(
            f"the custodian of {place.party!r} knows no state of run {plan.run_id!r}",
            code="mark-missing",
            expected="a run of which a node has deposited a mark",
            remedy="Ask a party whose node deposited one. If none did, change the plan"
            " itself, give it another run if a node was warranted, and all sign it"
            " again.",
        )
    return mark


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} exists already",
            code="file-exists",
            expected="a new file",
            remedy="The plan before it stays as it is; choose another name.",
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot write {path}",
            code="file-unwritable",
            got=error.strerror or "an error",
        ) from error
