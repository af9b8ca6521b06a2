"""``cloister demo``: everything once, on this machine, with simulated platforms.

It makes a deployment, signs its plan for all parties, runs their custodians and the
server, alice and bob, trains, seals, opens the sealed model as its owner, evaluates
what came out on the same held-out records, and audits the run.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from cloister.cli.auditing_here import audit_here
from cloister.cli.commands.init import order_for
from cloister.cli.deployment import write_deployment
from cloister.cli.hardening import harden_process
from cloister.cli.host_time import utc_now
from cloister.cli.output import Json, write_json
from cloister.cli.places import AUDIT_NAME, Place, custodians_beside, read_place
from cloister.cli.progress import SIMULATED_NOTICE, reporter_for
from cloister.cli.reopening import evaluate_opened
from cloister.cli.running import run_plan
from cloister.cli.signing import sign_all_here
from cloister.federation.auditing.report import AuditReport
from cloister.plan.plan import Plan, plan_hash
from cloister.storage.model_vault import OpenedModel, open_model, read_identity


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo shows in the end.

    Attributes:
        plan: The plan that was run.
        place: The server's place.
        reported: The metrics that the server sealed with the model.
        opened: The metrics of the model that the owner opened.
        audit: What the run's audit log proves.
        seconds: From starting custodians and nodes to the sealed model.
        setup_seconds: Making and signing the deployment.
        custodians: How many were run.
    """

    plan: Plan
    place: Place
    reported: dict[str, float]
    opened: dict[str, float]
    audit: AuditReport
    seconds: float
    setup_seconds: float
    custodians: int


@click.command("demo")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A CIFAR-10 binary directory  [default: bundled handwritten digits]",
)
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds of training.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Where the deployment goes  [default: demo/TIME here]",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(
    *, data: Path | None, rounds: int | None, directory: Path | None, as_json: bool
) -> None:
    """Train a ResNet-56 with a server, alice and bob; seal the model and open it."""
    harden_process()  # every party's key is about to be in its memory
    console = Console(stderr=True, highlight=False)
    console.print(SIMULATED_NOTICE, style="yellow")
    result = _run(
        directory or Path("demo") / f"{utc_now():%Y%m%d-%H%M%S}",
        data=data,
        rounds=rounds,
        console=console,
    )
    _tell(result, console)
    if as_json:
        write_json(_as_json(result))


def _run(
    directory: Path, *, data: Path | None, rounds: int | None, console: Console
) -> DemoResult:
    began = time.monotonic()
    console.print("1. a deployment", style="bold")
    plan_path = write_deployment(
        order_for(
            directory, data=data, workers=("alice", "bob"), rounds=rounds, tee=None
        ),
        at=utc_now(),
        tell=lambda line: console.print(f"  {line}"),
    )
    console.print("2. everybody signs the plan, with one key for each", style="bold")
    plan = sign_all_here(plan_path, at=utc_now()).plan
    names = ", ".join(party.name for party in plan.party)
    console.print(f"  signed here for {names}; each party would do it itself")
    started = time.monotonic()
    console.print(
        "3. custodians warrant three nodes, which attest each other and train",
        style="bold",
    )
    run_plan(plan, plan_path, reporter=reporter_for(plan, console))
    ended = time.monotonic()
    console.print("4. the owner opens the sealed model", style="bold")
    place = read_place(plan_path, role="server", party=None, site_path=None)
    identity = read_identity(plan_path.parent / "owner" / "identity.txt")
    opened = open_model(place.model_path, identity=identity)
    evaluated = evaluate_opened(plan_path, plan, opened)
    console.print(
        "5. an auditor checks the log, with the plan and every custodian's head",
        style="bold",
    )
    return DemoResult(
        plan=plan,
        place=place,
        reported=_sealed_metrics(opened),
        opened=evaluated,
        audit=audit_here(plan, plan_path, place.run_directory),
        seconds=ended - started,
        setup_seconds=started - began,
        custodians=len(custodians_beside(plan_path)),
    )


def _sealed_metrics(opened: OpenedModel) -> dict[str, float]:
    prefix = "metric."
    return {
        name.removeprefix(prefix): float(value)
        for name, value in opened.metadata.items()
        if name.startswith(prefix)
    }


def _as_json(result: DemoResult) -> Json:
    plan, place = result.plan, result.place
    return {
        "accuracy": result.reported["accuracy"],
        "opened_accuracy": result.opened["accuracy"],
        "loss": result.reported["loss"],
        "rounds": plan.training.rounds,
        "seconds": round(result.seconds, 3),
        "setup_seconds": round(result.setup_seconds, 3),
        "parties": [p.name for p in plan.party],
        "custodians": result.custodians,
        "audit_records": result.audit.records,
        "audit_unproven_records": result.audit.unproven,
        "simulated": plan.simulated,
        "plan_hash": plan_hash(plan).hex(),
        "run_dir": str(place.run_directory),
        "sealed_model": str(place.model_path),
        "identity": str(place.plan_directory / "owner" / "identity.txt"),
    }


def _tell(result: DemoResult, console: Console) -> None:
    run_directory = result.place.run_directory
    same = "the same" if result.opened == result.reported else "NOT the same"
    for line in (
        "",
        f"held-out accuracy   {result.reported['accuracy']:.4f} after"
        f" {result.plan.training.rounds} rounds in {result.seconds:.0f} s",
        f"opened model        {result.opened['accuracy']:.4f}, {same} as reported",
        f"sealed model        {result.place.model_path}",
        f"audit log           {run_directory / AUDIT_NAME}",
        f"                    {result.audit.records} records hold,"
        f" {_proven(result.audit)}",
        f"logs                {run_directory / 'logs'}",
        "TEE                 simulated: a demonstration, not protection",
        "",
        "open it yourself:",
        f"  {sys.argv[0]} model open {run_directory} \\",
        f"    --identity {result.place.plan_directory / 'owner' / 'identity.txt'}"
        " -o model.safetensors",
        "read what happened:",
        f"  {sys.argv[0]} audit show {run_directory}",
    ):
        console.print(line, soft_wrap=True)


def _proven(audit: AuditReport) -> str:
    if audit.unproven:
        return f"the last {audit.unproven} proven by nobody outside the host"
    return "proven to the last by custodians"
