"""The server node's work; imported only in a node's clean process."""

from __future__ import annotations

from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.cli.earlier_starts import check_begins, check_not_over, check_unknown
from cloister.cli.journal import open_log
from cloister.cli.node_process import run_node
from cloister.cli.node_state import (
    begin_anew,
    former_mirror,
    server_mirror,
    sole_node,
)
from cloister.cli.nodes import build_node, gather, open_line
from cloister.cli.own_output import prints_of
from cloister.cli.places import Place, read_place
from cloister.cli.run_audit import open_run_audit
from cloister.federation.server import ServerSettings, serve
from cloister.plan.site import parse_address


def run(
    plan_path: Path,
    site_path: Path | None,
    *,
    fresh: bool,
    as_json: bool,
    tethered: bool,
) -> None:
    """Runs the server node and exits.

    Args:
        plan_path: The plan.
        site_path: The node's site file; None for where `init` puts it.
        fresh: Whether the run begins anew; else it goes on.
        as_json: Whether events go to stdout.
        tethered: Whether to stop when standard input closes.
    """
    place = read_place(plan_path, role="server", party=None, site_path=site_path)

    async def main(log: FilteringBoundLogger) -> None:
        # Alone from here on: what lies there is of nobody who still writes.
        async with sole_node(place, log=log):
            if fresh:
                check_begins(place.plan)
            else:
                check_not_over(place)
            await _serve(place, fresh=fresh, log=log)

    journal = open_log(place.log_path, as_json=as_json, party=place.site.party)
    prints = prints_of(place.party, as_json=as_json)
    run_node(journal, main, prints=prints, tethered=tethered)


async def _serve(place: Place, *, fresh: bool, log: FilteringBoundLogger) -> None:
    built = await build_node(place, log=log)
    node = built.node
    line = await open_line(node, place, log=log)
    try:
        if fresh:
            check_unknown(place.plan, place.plan_path, {node.party: line.mark})
            begin_anew(place, log=log)
        # A key that is missing is to be known now, not with the first state.
        keys = await gather(node, line, place, log=log)
        mirror, former = server_mirror(place, keys), former_mirror(place, keys)
        with open_run_audit(
            node, place, known=line.mark, known_under=line.mark_plan
        ) as audit:
            await serve(
                node,
                built.task,
                strategy=built.strategy,
                initial=built.initial,
                custodian=line,
                settings=ServerSettings(
                    enrolment=parse_address(place.addresses.enrolment),
                    training=parse_address(place.addresses.training),
                    patience_seconds=place.site.patience_seconds,
                    model_path=place.model_path,
                ),
                audit=audit,
                mirror=mirror,
                former=former,
                log=log,
            )
    finally:
        await line.close()
