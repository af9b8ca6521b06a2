"""``cloister plan``: checks a plan, or says in words what it means."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.attestation.policy_words import references_in_words, root_in_words
from cloister.cli.output import write_json
from cloister.plan.plan import Plan, plan_hash, read_plan


@click.group("plan")
def command() -> None:
    """Check a plan, or show it in words."""


@command.command("check")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def check(*, plan_path: Path, as_json: bool) -> None:
    """Check that PLAN fits the schema, and print its hash."""
    plan = read_plan(plan_path)
    digest = plan_hash(plan).hex()
    if as_json:
        write_json({"run": plan.run_id, "hash": digest, "simulated": plan.simulated})
    else:
        click.echo(digest)


@command.command("show")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
def show(*, plan_path: Path) -> None:
    """Say in words who takes part, what must be proved, and who gets the model."""
    click.echo("\n".join(describe(read_plan(plan_path))))


def describe(plan: Plan) -> list[str]:
    """Returns a plan in words, line by line."""
    training, workers = plan.training, ", ".join(p.name for p in plan.workers)
    lines = [
        f"Run {plan.run_id}, plan {plan_hash(plan).hex()}",
        "",
        f"{plan.server.name} aggregates; {workers} train on their own data.",
        f"{training.rounds} rounds of synchronous SGD, {training.batch_size} examples"
        f" a worker and round, in {training.precision}, all workers every round.",
        f"The task is {plan.task.class_} in {plan.task.file}"
        f" with {dict(plan.task.options)}.",
        "",
        "Every node must prove by attestation that it runs exactly:",
    ]
    for role, policy in (
        ("server", plan.policy.server),
        ("worker", plan.policy.worker),
    ):
        lines += [f"  {role}: {line}" for line in references_in_words(policy)]
    lines += [f"on {root_in_words(plan.policy.server)}."]
    lines += ["`cloister policy explain PLAN` says all that a policy asks for."]
    lines += [
        "",
        "The host sees sizes, times, round numbers and aggregate metrics.",
        "A worker sees every round's model, and what it can compute from two of them:"
        " of only two workers, each learns the other's mean gradient. It never sees"
        " another's records.",
        "The model is sealed to:",
        *(f"  {recipient}" for recipient in plan.model.recipients),
    ]
    return lines
