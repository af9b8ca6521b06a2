"""The worker node's work; imported only in a node's clean process."""

from __future__ import annotations

from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.cli.journal import open_log
from cloister.cli.node_process import run_node
from cloister.cli.node_state import begin_anew, former_mirror, sole_node, worker_mirror
from cloister.cli.nodes import build_node, gather, open_line
from cloister.cli.own_output import prints_of
from cloister.cli.party_data import find_data
from cloister.cli.places import Place, read_place
from cloister.federation.worker import WorkerSettings, work
from cloister.plan.site import parse_address


def run(
    plan_path: Path,
    party: str,
    site_path: Path | None,
    *,
    fresh: bool,
    as_json: bool,
    tethered: bool,
) -> None:
    """Runs a worker node and exits.

    Args:
        plan_path: The plan.
        party: The node's party.
        site_path: The node's site file; None for where `init` puts it.
        fresh: Whether what its task kept in an earlier beginning of the run is set
            aside.
        as_json: Whether events go to stdout.
        tethered: Whether to stop when standard input closes.
    """
    place = read_place(plan_path, role="worker", party=party, site_path=site_path)

    async def main(log: FilteringBoundLogger) -> None:
        # Alone from here on: what lies there is of nobody who still writes.
        async with sole_node(place, log=log):
            if fresh:
                begin_anew(place, log=log)
            await _work(place, log=log)

    journal = open_log(place.log_path, as_json=as_json, party=place.site.party)
    prints = prints_of(place.party, as_json=as_json)
    run_node(journal, main, prints=prints, tethered=tethered)


async def _work(place: Place, *, log: FilteringBoundLogger) -> None:
    built = await build_node(place, log=log)
    node, task = built.node, built.task
    found = find_data(place, task)
    line = await open_line(node, place, log=log)
    try:
        keys = await gather(node, line, place, log=log)
        source = found.open(keys)
        mirror = worker_mirror(place, keys)
        await work(
            node,
            task,
            source=source,
            custodian=line,
            settings=WorkerSettings(
                enrolment=parse_address(place.addresses.enrolment),
                training=parse_address(place.addresses.training),
                patience_seconds=place.site.patience_seconds,
                graph_path=place.graph_path,
            ),
            mirror=mirror,
            former=None if mirror is None else former_mirror(place, keys),
            log=log,
        )
    finally:
        await line.close()
