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
from cloister.cli.recipes import CIFAR, DIGITS, LOCAL_STEPS
from cloister.plan.training import Mode, Wire


@click.command("init")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A CIFAR-10 binary directory to distribute  [default: handwritten digits]",
)
@click.option(
    "--worker",
    "workers",
    multiple=True,
    default=("alice", "bob"),
    show_default=True,
    help="A worker's name; repeat for more.",
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
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(  # noqa: PLR0913 - one for each option
    *,
    directory: Path,
    data: Path | None,
    workers: tuple[str, ...],
    recipients: tuple[str, ...],
    rounds: int | None,
    mode: Mode,
    wire: Wire,
    tee: Tee | None,
    as_json: bool,
) -> None:
    """Write a simulated deployment to DIRECTORY: plan, task, sites, custodians, data.

    Nobody has signed its plan then.
    """
    harden_process()  # every party's key is about to be in its memory
    order = order_for(
        directory,
        data=data,
        workers=workers,
        recipients=recipients,
        rounds=rounds,
        mode=mode,
        wire=wire,
        tee=tee,
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
    workers: tuple[str, ...],
    rounds: int | None,
    tee: Tee | None,
    recipients: tuple[str, ...] = (),
    mode: Mode = "sync-sgd",
    wire: Wire = "float32",
) -> DeploymentOrder:
    """Returns the order for a deployment with the usual recipe for its data."""
    recipe = replace(DIGITS if data is None else CIFAR, wire=wire)
    if recipe.precision == "bfloat16" and not has_fast_bfloat16():
        recipe = replace(recipe, precision="float32")
    if mode == "fedavg":
        recipe = recipe.averaged(local_steps=LOCAL_STEPS)
    if rounds is not None:
        recipe = replace(
            recipe, rounds=rounds, warmup_rounds=min(recipe.warmup_rounds, rounds)
        )
    turn = (tee,) if tee else TEES
    return DeploymentOrder(
        directory=directory,
        recipe=recipe,
        run=f"{utc_now():%Y-%m-%d}-a",
        workers=tuple((name, turn[i % len(turn)]) for i, name in enumerate(workers)),
        recipients=tuple(
            (name, turn[i % len(turn)]) for i, name in enumerate(recipients)
        ),
        server_tee=turn[0],
        data=data,
    )


def has_fast_bfloat16() -> bool:
    """Returns whether this CPU multiplies bfloat16 in hardware (AMX)."""
    try:
        return " amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
