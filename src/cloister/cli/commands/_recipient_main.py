"""The recipient node's work; imported only in a node's clean process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.cli.journal import open_log
from cloister.cli.node_process import run_node
from cloister.cli.nodes import build_node, gather, open_line
from cloister.cli.own_output import OwnOutput, prints_of
from cloister.cli.party_data import find_recipient_data
from cloister.cli.places import Place, read_place
from cloister.cli.recipient_data import check_evaluates
from cloister.cli.sealed_copies import find_copy
from cloister.federation.recipient import means_of, receive_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to open, and as whom; None stands for where `init` and a run put it."""

    plan_path: Path
    party: str
    site_path: Path | None
    model_path: Path | None

    def place(self) -> Place:
        """Returns where the recipient's node finds its files.

        Raises:
            ConfigError: If a file does not fit, or the party is no recipient.
        """
        return read_place(
            self.plan_path, role="recipient", party=self.party, site_path=self.site_path
        )

    def sealed(self, place: Place) -> Path:
        """Returns the sealed model's path."""
        return self.model_path or place.model_path


def run(order: Order, *, must_evaluate: bool, as_json: bool, tethered: bool) -> None:
    """Runs a recipient node and exits.

    Args:
        order: What to open.
        must_evaluate: Whether a plan that pins no records is refused.
        as_json: Whether events go to stdout.
        tethered: Whether to stop when standard input closes.
    """
    place = order.place()
    if must_evaluate:
        check_evaluates(place)
    evaluates = place.party.data is not None
    sealed = find_copy(place, order.sealed(place), for_records=evaluates)

    out = OwnOutput()

    async def main(log: FilteringBoundLogger) -> None:
        built = await build_node(place, log=log)
        node, task = built.node, built.task
        found = find_recipient_data(place, task)
        line = await open_line(node, place, log=log)
        try:
            keys = await gather(node, line, place, log=log)
        finally:
            await line.close()
        source = None if found is None else found.open(keys)
        received = await receive_model(
            node, task, sealed=sealed, keys=keys, source=source, log=log
        )
        if received.evaluation is not None and not as_json:
            for name, value in sorted(means_of(received.evaluation).items()):
                out.say(f"{name} {value:.6g}")

    journal = open_log(place.log_path, as_json=as_json, party=place.site.party)
    prints = prints_of(place.party, as_json=as_json)
    run_node(journal, main, prints=prints, tethered=tethered)
