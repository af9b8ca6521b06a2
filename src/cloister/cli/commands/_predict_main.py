"""A predicting node's work; imported only in a node's clean process."""

from __future__ import annotations

from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.cli.commands._recipient_main import Order
from cloister.cli.journal import open_log
from cloister.cli.node_process import run_node
from cloister.cli.nodes import build_node, gather, open_line
from cloister.cli.own_output import prints_of
from cloister.cli.recipient_data import check_predicts, find_prediction_data
from cloister.cli.sealed_copies import find_copy
from cloister.federation.predictions import seal_predictions
from cloister.storage.age_files import check_new


def run(
    order: Order, *, data: Path, output: Path, as_json: bool, tethered: bool
) -> None:
    """Runs a recipient node that predicts, and exits.

    All that can be wrong with files is known before a key is asked for.

    Args:
        order: With which model, and as whom.
        data: The party's sealed records.
        output: Where the sealed predictions go.
        as_json: Whether events go to stdout.
        tethered: Whether to stop when standard input closes.
    """
    place = check_predicts(order.place())
    check_new(output)
    sealed = find_copy(place, order.sealed(place), for_records=True)

    async def main(log: FilteringBoundLogger) -> None:
        built = await build_node(place, log=log)
        node, task = built.node, built.task
        found = find_prediction_data(place, task, data)
        line = await open_line(node, place, log=log)
        try:
            keys = await gather(node, line, place, log=log)
        finally:
            await line.close()
        source = found.open(keys)
        await seal_predictions(
            node, task, sealed=sealed, keys=keys, source=source, path=output, log=log
        )

    journal = open_log(place.log_path, as_json=as_json, party=place.site.party)
    prints = prints_of(place.party, as_json=as_json)
    run_node(journal, main, prints=prints, tethered=tethered)
