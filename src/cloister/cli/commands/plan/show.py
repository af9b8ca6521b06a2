"""``cloister plan show``: what a plan means, in words."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.plan_words import describe
from cloister.plan.plan import read_plan


@click.command("show")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
def command(*, plan_path: Path) -> None:
    """Say in words who takes part, what must be proved, and who gets the model."""
    click.echo("\n".join(describe(read_plan(plan_path))))
