"""The custodian's work; imported only in a clean process."""

from __future__ import annotations

import asyncio
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.cli.custodian_port import open_port
from cloister.cli.custodians import build_custodian, look_at_plans, open_register
from cloister.cli.journal import open_log
from cloister.cli.node_process import run_node
from cloister.cli.places import read_custodian_place


def run(path: Path, *, as_json: bool, tethered: bool) -> None:
    """Runs the custodian until it is stopped, and exits."""
    place = read_custodian_place(path)

    async def main(log: FilteringBoundLogger) -> None:
        with open_register(place) as register:
            custodian = build_custodian(place, register, log=log)
            look_at_plans(custodian)
            async with open_port(custodian, place.address, log=log):
                # Nothing sets it: the task is cancelled in the end.
                await asyncio.Event().wait()

    journal = open_log(
        place.log_path, as_json=as_json, party=place.party, service="custodian"
    )
    # There is no task in it.
    run_node(journal, main, prints="as-they-are", tethered=tethered)
