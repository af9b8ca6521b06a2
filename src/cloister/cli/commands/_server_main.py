"""The server node's work; imported only in a node's clean process."""

from __future__ import annotations

from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.cli.node_process import run_node
from cloister.cli.nodes import build_node, read_place
from cloister.errors import ConfigError
from cloister.federation.server import ServerSettings, serve
from cloister.plan.site import parse_address


def run(
    plan_path: Path, site_path: Path | None, *, as_json: bool, tethered: bool
) -> None:
    """Runs the server node and exits."""
    place = read_place(plan_path, role="server", party=None, site_path=site_path)
    if place.model_path.exists():
        raise ConfigError(
            "this run is over: its model exists",
            code="run-exists",
            expected="a plan whose run has not been done",
            got=str(place.model_path),
            remedy="Give the plan a new [plan] run; one plan is one run.",
        )

    async def main(log: FilteringBoundLogger) -> None:
        node, task = await build_node(place, "server", log=log)
        await serve(
            node,
            task,
            settings=ServerSettings(
                enrolment=parse_address(place.site.addresses.enrolment),
                training=parse_address(place.site.addresses.training),
                patience_seconds=place.site.patience_seconds,
                model_path=place.model_path,
            ),
            log=log,
        )

    run_node(place, main, as_json=as_json, tethered=tethered)
