"""The worker node's work; imported only in a node's clean process."""

from __future__ import annotations

from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.cli.journal import open_log
from cloister.cli.node_process import run_node
from cloister.cli.nodes import build_node, open_line
from cloister.cli.places import Place, read_place
from cloister.errors import ConfigError, StorageError
from cloister.federation.task import Task
from cloister.federation.task_loading import task_code
from cloister.federation.worker import WorkerSettings, work
from cloister.plan.site import parse_address
from cloister.storage.raw_shard import RawShard, open_raw_shard


def run(
    plan_path: Path,
    party: str,
    site_path: Path | None,
    *,
    as_json: bool,
    tethered: bool,
) -> None:
    """Runs a worker node and exits."""
    place = read_place(plan_path, role="worker", party=party, site_path=site_path)

    async def main(log: FilteringBoundLogger) -> None:
        node, task = await build_node(place, log=log)
        source = open_data(place, task)
        line = await open_line(node, place, log=log)
        try:
            await work(
                node,
                task,
                source=source,
                custodian=line,
                settings=WorkerSettings(
                    enrolment=parse_address(place.site.addresses.enrolment),
                    training=parse_address(place.site.addresses.training),
                    patience_seconds=place.site.patience_seconds,
                ),
                log=log,
            )
        finally:
            await line.close()

    journal = open_log(place.log_path, as_json=as_json, party=place.site.party)
    run_node(journal, main, tethered=tethered)


def open_data(place: Place, task: Task) -> RawShard:
    """Returns the party's data, after checking that it is what the plan pins.

    Raises:
        ConfigError: If the site names no data.
        StorageError: If the data is damaged, or not what the plan pins.
    """
    if place.site.paths.data is None:
        raise ConfigError(
            f"the site of {place.site.party!r} names no data",
            code="data-missing",
            expected="[paths] data in site.toml",
        )
    with task_code(
        place.plan.task.file, "naming its schema", simulated=place.plan.simulated
    ):
        schema = task.schema()
    shard = open_raw_shard(place.at_site(place.site.paths.data), schema)
    pinned = place.plan.find_party(place.site.party).data
    if shard.digest != pinned:
        raise StorageError(
            f"the data of {place.site.party!r} is not what the plan pins",
            code="data-differs",
            expected=str(pinned),
            got=shard.digest,
            remedy="Restore the data, or have all parties sign a plan that pins it.",
        )
    return shard
