"""``cloister pccs``: serves what Intel's services would say of simulated machines."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.attestation.platforms.simulated.pccs import SimulatedPccs
from cloister.attestation.platforms.simulated.pccs_server import (
    SimulatedPccsServer,
    provide_tls_certificate,
)
from cloister.attestation.platforms.simulated.root import load_simulated_root
from cloister.attestation.reports import Tee
from cloister.cli.host_time import utc_now
from cloister.cli.output import write_json
from cloister.plan.site import parse_address

# Where `cloister init` puts the root, and a PCCS usually listens.
ROOT_DIRECTORY = "insecure-simulated-root"
DEFAULT_LISTEN = "127.0.0.1:8081"

_TEES: tuple[Tee, ...] = ("sgx", "tdx")


@click.group("pccs")
def command() -> None:
    """Serve a deployment's simulated collateral."""


@command.command("serve")
@click.argument("deployment", type=click.Path(path_type=Path))
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=DEFAULT_LISTEN,
    show_default=True,
    help="Where; port 0 takes any free one.",
)
@click.option("--json", "as_json", is_flag=True, help="Write events to stdout.")
def serve(*, deployment: Path, listen: str, as_json: bool) -> None:
    """Serve the collateral of DEPLOYMENT's simulated platforms, until Ctrl-C.

    The API is that of Intel's PCS and PCCS, version 4, over HTTPS. What it says is
    SIMULATED: it is signed by the deployment's development root.
    """
    address = parse_address(listen, lowest_port=0)
    host = address.host.strip("[]")
    root = load_simulated_root(deployment / ROOT_DIRECTORY)
    pccs = SimulatedPccs(root, clock=utc_now)
    fmspcs = {tee: pccs.current(tee).tcb_info.fmspc.hex().upper() for tee in _TEES}
    certificate = provide_tls_certificate(root.directory, host=host, at=utc_now())
    server = SimulatedPccsServer(
        pccs, host=host, port=address.port, certificate=certificate
    )
    if as_json:
        write_json(
            {
                "event": "serving",
                "simulated": True,
                "address": server.address,
                "certificate": str(certificate),
                "root": root.trust_root.name,
                "fmspc": fmspcs,
            }
        )
    else:
        click.echo(
            f"SIMULATED collateral under {root.trust_root.name}\n"
            f"serving    {server.address}\n"
            f"CA file    {certificate}\n"
            f"FMSPC      {', '.join(sorted(set(fmspcs.values())))}\n"
            "Ctrl-C ends it",
            err=True,
        )
    try:
        server.serve()
    finally:
        server.close()
