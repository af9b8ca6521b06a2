"""``cloister plan sign``: a party's consent to a plan, with its custodian's key."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.asking import ask
from cloister.cli.hardening import harden_process
from cloister.cli.host_time import utc_now
from cloister.cli.output import write_json
from cloister.cli.plan_words import describe
from cloister.cli.signing import (
    PlanFile,
    Signatures,
    chosen_custodians,
    read_plan_file,
    sign,
)
from cloister.plan.plan import plan_hash


@click.command("sign")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--custodian",
    "directories",
    metavar="DIR",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A custodian's directory; repeat for more.",
)
@click.option(
    "--all-here", is_flag=True, help="Every custodian in custodians/ beside PLAN."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(
    *,
    plan_path: Path,
    directories: tuple[Path, ...],
    all_here: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Consent to PLAN: its parties' nodes get warrants for it from then on.

    It says in words what is signed. The consent goes into the custodian's register,
    and beside PLAN, for the other parties.
    """
    harden_process()  # the parties' keys are about to be in its memory
    file = read_plan_file(plan_path)
    places = chosen_custodians(file, directories, all_here=all_here)
    names = ", ".join(place.party for place in places)
    click.echo("\n".join(describe(file.plan)), err=True)
    click.echo("", err=True)
    ask(f"Sign this plan as {names}?", yes=yes)
    found = sign(file, places, at=utc_now())
    if as_json:
        write_json(
            {
                "run": file.plan.run_id,
                "hash": plan_hash(file.plan).hex(),
                "signed_now": [place.party for place in places],
                "signed": found.signed,
                "missing": found.missing,
                "refused": {name: it.code for name, it in found.refused.items()},
                "consents": str(file.consents),
            }
        )
    else:
        click.echo(_said(file, found, names, plan_path), err=True)


def _said(file: PlanFile, found: Signatures, names: str, plan_path: Path) -> str:
    lines = [f"signed by {names}; the consents lie in {file.consents}"]
    lines += [
        f"WARNING: the consent of {name} beside the plan does not hold: {error}"
        for name, error in found.refused.items()
    ]
    if found.missing:
        lines += [
            f"still missing: {', '.join(found.missing)}",
            "Send them the plan and the task, and take their consents into that"
            " directory.",
        ]
    elif not found.refused:
        lines += [f"everybody has signed; next: cloister run {plan_path}"]
    return "\n".join(lines)
