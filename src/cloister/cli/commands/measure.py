"""``cloister measure``: what a node of each role would measure on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import click

from cloister.attestation.platforms.measurement import (
    Installation,
    Measurement,
    measure_installation,
    node_measurement,
    running_interpreter,
)
from cloister.cli.interpreter import isolated_path
from cloister.cli.output import write_json
from cloister.cli.plan_measurements import check_asks_for, with_measurements
from cloister.cli.quote_file import read_bytes
from cloister.cli.sources import read_sources
from cloister.errors import StorageError
from cloister.plan.plan import Plan, Role, parse_plan, read_plan
from cloister.storage.whole_file import write_whole


@click.command("measure")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--write", is_flag=True, help="Put the values into PLAN's policies as well."
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(*, plan_path: Path, write: bool, as_json: bool) -> None:
    """Print what a node of each role would measure.

    That is its interpreter, every installed file, and the source files that PLAN names:
    the task's, and its own strategy's if it has one.

    With --write the plan asks for just that afterwards. It has another hash then:
    nobody has signed it.
    """
    plan = read_plan(plan_path)
    machine = measure_roles(plan, plan_path)
    installation, measured = machine.installation, machine.measured
    if write:
        _rewrite(plan_path, measured)
    if as_json:
        write_json({role: _values(m) for role, m in measured.items()})
        return
    files = installation.interpreter_files + installation.installed_files
    click.echo(
        f"{files} files, {installation.total_bytes / 1e6:.0f} MB, and"
        f" {' and '.join(plan.source_files)}"
    )
    for role, measurement in measured.items():
        click.echo(f"\n{role}")
        for name, value in _values(measurement).items():
            click.echo(f"  {name.upper():<12} {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMachine:
    """What this machine would run.

    Attributes:
        installation: Interpreter and installed files.
        measured: With the plan's source files, by role.
    """

    installation: Installation
    measured: dict[Role, Measurement]


def measure_roles(plan: Plan, plan_path: Path) -> MeasuredMachine:
    """Returns what a node of each role would measure on this machine.

    Raises:
        CloisterError: If a source file, the interpreter or an installed file is
            unreadable.
    """
    sources = read_sources(plan, plan_path.parent).measured
    installation = measure_installation(
        interpreter=running_interpreter(), search_path=isolated_path()
    )
    return MeasuredMachine(
        installation=installation,
        measured={
            role: node_measurement(installation, sources=sources, role=role)
            for role in get_args(Role)
        },
    )


def _rewrite(plan_path: Path, measured: Mapping[Role, Measurement]) -> None:
    """Puts measurements into a plan's file.

    Raises:
        ConfigError: If it is not clear where.
        StorageError: If the file cannot be written.
    """
    text = with_measurements(read_bytes(plan_path).decode(), measured).encode()
    # What is written must be what `run` accepts; TOML has more spellings than we edit.
    check_asks_for(parse_plan(text), measured)
    try:
        write_whole(plan_path, text)
    except OSError as error:
        raise StorageError(
            f"cannot write the plan {plan_path}",
            code="output-unwritable",
            got=error.strerror or "an error",
        ) from error


def _values(measurement: Measurement) -> dict[str, str | int]:
    return {
        "mr_enclave": measurement.mr_enclave.hex(),
        "mr_signer": measurement.mr_signer.hex(),
        "isv_prod_id": measurement.isv_prod_id,
        "isv_svn": measurement.isv_svn,
        "mrtd": measurement.mrtd.hex(),
        "rtmr0": measurement.rtmr0.hex(),
        "rtmr1": measurement.rtmr1.hex(),
        "rtmr2": measurement.rtmr2.hex(),
    }
