"""``cloister init``: writes a deployment to edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import click

from cloister.attestation.reports import Tee
from cloister.cli.deployment import TEES, DeploymentOrder, write_deployment
from cloister.cli.hardening import harden_process
from cloister.cli.host_time import utc_now
from cloister.cli.output import write_json
from cloister.cli.recipes import CIFAR, DIGITS, LOCAL_STEPS, RECIPES
from cloister.plan.training import Mode, Wire
from cloister.workloads.precision import has_fast_bfloat16


@click.command("init")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    "name",
    type=click.Choice(sorted(RECIPES)),
    help="What to train  [default: digits; with --data a short cifar-10]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Where the data lies that is dealt out and sealed  [default: bundled data]",
)
@click.option(
    "--worker",
    "workers",
    multiple=True,
    help="A worker's name; repeat for more  [default: as the recipe has them]",
)
@click.option(
    "--recipient",
    "recipients",
    multiple=True,
    help="A party that may use the model in an attested node; repeat for more.",
)
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds of training.")
@click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    default="sync-sgd",
    show_default=True,
    help="Average gradients every step, or models after some steps of each worker.",
)
@click.option(
    "--wire",
    type=click.Choice(get_args(Wire)),
    default="float32",
    show_default=True,
    help="How parameters travel: exact, or rounded to half the bytes.",
)
@click.option(
    "--tee",
    type=click.Choice(TEES),
    help="Simulate this for all  [default: sgx and tdx in turn]",
)
@click.option(
    "--graph", is_flag=True, help="Have the first worker seal the network's structure."
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(  # noqa: PLR0913 - one for each option
    *,
    directory: Path,
    name: str | None,
    data: Path | None,
    workers: tuple[str, ...],
    recipients: tuple[str, ...],
    rounds: int | None,
    mode: Mode,
    wire: Wire,
    tee: Tee | None,
    graph: bool,
    as_json: bool,
) -> None:
    """Write a simulated deployment to DIRECTORY: plan, task, sites, custodians, data.

    The data is sealed; nobody has signed the plan then.
    """
    harden_process()  # every party's key is about to be in its memory
    order = order_for(
        directory,
        name=name,
        data=data,
        workers=workers,
        recipients=recipients,
        rounds=rounds,
        mode=mode,
        wire=wire,
        tee=tee,
        graph=graph,
    )
    plan_path = write_deployment(
        order, at=utc_now(), tell=lambda line: click.echo(line, err=True)
    )
    if as_json:
        write_json({"plan": str(plan_path), "simulated": True})
    else:
        click.echo(
            f"wrote {plan_path}; next: cloister plan sign {plan_path} --all-here,"
            f" then cloister run {plan_path}",
            err=True,
        )


def order_for(  # noqa: PLR0913 - one for each option
    directory: Path,
    *,
    data: Path | None,
    name: str | None = None,
    workers: tuple[str, ...] = (),
    rounds: int | None = None,
    tee: Tee | None = None,
    recipients: tuple[str, ...] = (),
    mode: Mode = "sync-sgd",
    wire: Wire = "float32",
    graph: bool = False,
) -> DeploymentOrder:
    """Returns the order for a deployment with a recipe; the usual one for its data."""
    usual = DIGITS if data is None else CIFAR
    recipe = replace(RECIPES[name] if name else usual, wire=wire)
    if recipe.precision == "bfloat16" and not has_fast_bfloat16():
        recipe = replace(recipe, precision="float32")
    if mode == "fedavg":
        recipe = recipe.averaged(local_steps=LOCAL_STEPS)
    if rounds is not None:
        recipe = recipe.for_rounds(rounds)
    turn = (tee,) if tee else TEES
    chosen = workers or recipe.workers
    return DeploymentOrder(
        directory=directory,
        recipe=recipe,
        run=f"{utc_now():%Y-%m-%d}-a",
        workers=tuple((name, turn[i % len(turn)]) for i, name in enumerate(chosen)),
        recipients=tuple(
            (name, turn[i % len(turn)]) for i, name in enumerate(recipients)
        ),
        server_tee=turn[0],
        data=data,
        graph=graph,
    )
