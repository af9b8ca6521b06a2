"""``cloister run``: all custodians and nodes of a plan on this machine."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from cloister.cli.output import write_json
from cloister.cli.progress import SIMULATED_NOTICE, JsonReporter, reporter_for
from cloister.cli.running import run_plan
from cloister.plan.plan import plan_hash, read_plan


@click.command("run")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--fresh", is_flag=True, help="Begin anew; set aside what is there.")
@click.option("--json", "as_json", is_flag=True, help="Write events to stdout.")
def command(*, plan_path: Path, fresh: bool, as_json: bool) -> None:
    """Start all nodes that train on this machine and see them through to the end.

    Everybody must have signed PLAN. The custodians beside it are started first. A run
    that was stopped, or killed, goes on from the last state that its server kept.
    """
    plan = read_plan(plan_path)
    console = Console(stderr=True)
    if plan.simulated:
        console.print(SIMULATED_NOTICE, style="yellow")
    console.print(f"plan {plan.run_id}  {plan_hash(plan).hex()}", highlight=False)
    reporter = JsonReporter(write_json) if as_json else reporter_for(plan, console)
    run_plan(plan, plan_path, reporter=reporter, fresh=fresh)
    if as_json:
        write_json({"event": "done", "run": plan.run_id, "simulated": plan.simulated})
    else:
        console.print("done: the model is sealed to its recipients", style="green")
