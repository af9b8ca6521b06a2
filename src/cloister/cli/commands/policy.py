"""``cloister policy``: says what a policy accepts, or writes one for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
import msgspec

from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.policy import Policy, SgxReference, TdxReference
from cloister.attestation.policy_words import explain
from cloister.cli.commands.measure import measure_roles
from cloister.cli.output import write_json
from cloister.errors import ConfigError
from cloister.plan.plan import Plan, Role, read_plan
from cloister.plan.policy_file import format_policy, read_policy_file

ROLES: tuple[Role, ...] = get_args(Role)


@click.group("policy")
def command() -> None:
    """Say what a policy accepts, or write one."""


@command.command("explain")
@click.argument("policy_path", metavar="POLICY", type=click.Path(path_type=Path))
def explain_command(*, policy_path: Path) -> None:
    """Say in words what POLICY accepts.

    POLICY is a policy in TOML, a plan, or a dynamic_config.json.
    """
    # A dynamic_config.json names no root; whoever uses it says which one counts.
    file = read_policy_file(policy_path, root="hardware")
    for role, policy in file.policies.items():
        if role:
            click.echo(f"{role}:")
        click.echo("\n".join(explain(policy)))
        if role:
            click.echo()
    if not file.names_root:
        click.echo(
            "A dynamic_config.json names no root: hardware is taken here, and"
            " `quote verify` takes the root that it verifies under."
        )


@command.command("from-measurements")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--role", type=click.Choice(ROLES), help="Write this role's, as a file of its own."
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def from_measurements(*, plan_path: Path, role: Role | None, as_json: bool) -> None:
    """Write PLAN's policies with what a node measures on this machine.

    All else in them stays as PLAN has it. Without --role they are all the plan's tables
    [policy.ROLE], to be put in their place.
    """
    plan = read_plan(plan_path)
    policies = {
        each: measured_policy(plan, each, measurement)
        for each, measurement in measure_roles(plan, plan_path).measured.items()
        if each == role or (role is None and getattr(plan.policy, each) is not None)
    }
    if as_json:
        write_json({name: msgspec.to_builtins(it) for name, it in policies.items()})
    elif role is not None:
        click.echo(format_policy(policies[role]), nl=False)
    else:
        tables = (
            format_policy(it, table=f"policy.{name}") for name, it in policies.items()
        )
        click.echo("\n".join(tables), nl=False)


def measured_policy(plan: Plan, role: Role, measured: Measurement) -> Policy:
    """Returns the plan's policy for `role` with one measurement in place of its own.

    Raises:
        ConfigError: If the plan is for hardware, whose measurements are others.
    """
    policy = plan.policy_for(role)
    if not plan.simulated:
        raise ConfigError(
            "this machine cannot say what real hardware will measure",
            code="measurement-simulated",
            expected="a plan whose policies name a simulated root",
            got=policy.root,
            remedy="take MRENCLAVE from the signed enclave, MRTD and RTMR0-2 from the "
            "image's build, or all of them from `cloister quote verify`",
        )
    return msgspec.structs.replace(
        policy,
        sgx=(SgxReference(mr_enclave=measured.mr_enclave.hex()),),
        sgx_exact=(),
        tdx=(
            TdxReference(
                mrtd=measured.mrtd.hex(),
                rtmr0=measured.rtmr0.hex(),
                rtmr1=measured.rtmr1.hex(),
                rtmr2=measured.rtmr2.hex(),
            ),
        ),
    )
