"""The server node's work; imported only in a node's clean process."""

from __future__ import annotations

from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.cli.journal import open_log
from cloister.cli.node_process import run_node
from cloister.cli.nodes import build_node, gather, open_line
from cloister.cli.own_output import prints_of
from cloister.cli.places import check_new_run, read_place
from cloister.cli.run_audit import open_run_audit
from cloister.federation.server import ServerSettings, serve
from cloister.plan.site import parse_address


def run(
    plan_path: Path, site_path: Path | None, *, as_json: bool, tethered: bool
) -> None:
    """Runs the server node and exits."""
    place = check_new_run(
        read_place(plan_path, role="server", party=None, site_path=site_path)
    )

    async def main(log: FilteringBoundLogger) -> None:
        built = await build_node(place, log=log)
        node = built.node
        line = await open_line(node, place, log=log)
        try:
            # Nothing lies sealed yet; a key that is missing is to be known now.
            await gather(node, line, place, log=log)
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
                    log=log,
                )
        finally:
            await line.close()

    journal = open_log(place.log_path, as_json=as_json, party=place.site.party)
    prints = prints_of(place.party, as_json=as_json)
    run_node(journal, main, prints=prints, tethered=tethered)
