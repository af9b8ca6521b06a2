"""The recipient node's work; imported only in a node's clean process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.cli.journal import open_log
from cloister.cli.node_process import run_node
from cloister.cli.nodes import build_node, gather, open_line
from cloister.cli.party_data import open_recipient_data
from cloister.cli.places import read_place
from cloister.errors import ConfigError
from cloister.federation.recipient import receive_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to open, and as whom; None stands for where `init` and a run put it."""

    plan_path: Path
    party: str
    site_path: Path | None
    model_path: Path | None


def run(order: Order, *, as_json: bool, tethered: bool) -> None:
    """Runs a recipient node and exits."""
    place = read_place(
        order.plan_path, role="recipient", party=order.party, site_path=order.site_path
    )
    sealed = _check_there(order.model_path or place.model_path)

    async def main(log: FilteringBoundLogger) -> None:
        built = await build_node(place, log=log)
        node, task = built.node, built.task
        source = open_recipient_data(place, task)
        line = await open_line(node, place, log=log)
        try:
            keys = await gather(node, line, place, log=log)
        finally:
            await line.close()
        await receive_model(
            node, task, sealed=sealed, keys=keys, source=source, log=log
        )

    journal = open_log(place.log_path, as_json=as_json, party=place.site.party)
    run_node(journal, main, tethered=tethered)


def _check_there(sealed: Path) -> Path:
    """Returns the model's path; no key is asked for before there is a model."""
    if not sealed.is_file():
        raise ConfigError(
            f"no sealed model {sealed}",
            code="model-missing",
            expected="the model of a run that has ended",
            remedy="Give its path with --model.",
        )
    return sealed
