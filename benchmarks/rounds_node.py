"""One process of a measured run: the server, some workers, or the custodians.

    rounds_node.py server DIR | custodians DIR | workers DIR FIRST COUNT [--hold]

Each says its log's lines on standard output. One worker in a process is an ordinary
one; several are light: they share the buffer that models land in. With ``--hold`` the
last one comes only after a line on standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from cloister.cli.journal import open_journal
from cloister.cli.node_process import run_node
from cloister.federation.allocator import settle_allocator
from cloister.federation.audit_start import open_audit
from cloister.federation.server import ServerSettings, serve
from cloister.federation.worker import WorkerSettings, work
from cloister.ratls.node import Node
from cloister.storage.keys import new_key
from cloister.storage.mirror.subject import MirrorPlace, Subject
from rounds_scene import RunScene, open_custodians, say, worker_names
from rounds_task import Gate, NoData, Nothing, Shared, wait_for_word
from scene import SERVER

PATIENCE_SECONDS = 600.0
# Light workers of one process that enrol at the same time.
AT_ONCE = 4


async def serving(scene: RunScene, log: FilteringBoundLogger) -> None:
    """Runs the server."""
    settings = ServerSettings(
        enrolment=scene.settings.address(0),
        training=scene.settings.address(1),
        patience_seconds=PATIENCE_SECONDS,
        model_path=scene.directory / "model.safetensors.age",
    )
    async with scene.watched_node(SERVER, log=log) as (node, custodian):
        audit = open_audit(
            scene.directory / "audit.jsonl",
            node=node,
            consents=scene.consents(),
            plan_text=scene.plan_text,
            known=custodian.mark,
            known_under=node.plan_hash,
        )
        with audit:
            await serve(
                node,
                Nothing(scene.settings.size),
                custodian=custodian,
                settings=settings,
                audit=audit,
                mirror=_place(node, scene.directory),
                former=None,
                log=log,
            )


def _place(node: Node, directory: Path) -> MirrorPlace:
    """Returns where the server's state is kept: beside its log, under a fresh key."""
    return MirrorPlace(
        path=directory / "server.mirror",
        key=new_key(),
        subject=Subject(
            run_id=node.plan.run_id,
            plan_hash=node.plan_hash,
            role=node.role,
            party=node.party,
        ),
    )


async def watching(scene: RunScene) -> None:
    """Runs the custodians until standard input closes."""
    async with open_custodians(scene):
        say("custodians-ready")
        await asyncio.to_thread(sys.stdin.read)


async def training(
    scene: RunScene, parties: list[str], log: FilteringBoundLogger, *, hold: bool
) -> None:
    """Runs some workers."""
    given, turn = scene.settings, asyncio.Semaphore(AT_ONCE)
    if len(parties) > 1:
        task: Nothing = Shared(given.size)
    else:
        task = Nothing(given.size, gate=Gate(given.burst) if given.burst else _open)
    settings = WorkerSettings(
        enrolment=given.address(0),
        training=given.address(1),
        patience_seconds=PATIENCE_SECONDS,
        graph_path=scene.directory / "graph.pt2.age",
    )

    async def one(party: str) -> None:
        if hold and party == parties[-1]:
            await asyncio.to_thread(wait_for_word)
        await turn.acquire()
        enrolled = _releasing(log if len(parties) == 1 else None, turn)
        async with scene.watched_node(party, log=log) as (node, custodian):
            await work(
                node,
                task,
                source=NoData(),
                custodian=custodian,
                settings=settings,
                mirror=None,
                former=None,
                log=enrolled,
            )

    async with asyncio.TaskGroup() as group:
        for party in parties:
            group.create_task(one(party))


def _open(_: int) -> None:
    """A gate that is never shut."""


def _releasing(
    log: FilteringBoundLogger | None, turn: asyncio.Semaphore
) -> FilteringBoundLogger:
    """Returns a log that gives the turn to the next worker after an enrolment.

    Args:
        log: Where the lines go; those of light workers go nowhere.
        turn: Released once.
    """
    released: list[bool] = []

    def notice(_: object, __: str, event: MutableMapping[str, Any]) -> Any:
        if event["event"] == "server-attested" and not released:
            released.append(True)
            turn.release()
        if log is not None:
            log.info(**event)
        elif event["event"] not in {"server-attested", "round", "finished"}:
            print(dict(event), file=sys.stderr, flush=True)
        raise structlog.DropEvent

    made: FilteringBoundLogger = structlog.wrap_logger(
        None,
        processors=[notice],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )
    return made


def main() -> None:
    """Runs one process."""
    settle_allocator()  # as every node does
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("server", "custodians", "workers"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("first", type=int, nargs="?", default=0)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--hold", action="store_true")
    options = parser.parse_args()
    scene = RunScene(options.directory)
    if options.role == "custodians":
        asyncio.run(watching(scene))
        return
    parties = list(worker_names(options.first, options.count))
    server = options.role == "server"

    async def work_on(log: FilteringBoundLogger) -> None:
        if server:
            await serving(scene, log)
        else:
            await training(scene, parties, log, hold=options.hold)

    name = SERVER if server else f"from-{parties[0]}"
    journal = open_journal(scene.directory, party=name, as_json=True)
    # A worker's standard input opens its gates.
    run_node(journal, work_on, prints="as-they-are", tethered=server)


if __name__ == "__main__":
    main()
