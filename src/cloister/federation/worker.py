"""The worker node: enrols, then trains round by round until the server says final."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.federation.alongside import alongside
from cloister.federation.custodian import Custodian
from cloister.federation.deposits import Deposits
from cloister.federation.graph_sealing import GraphSealing
from cloister.federation.membership import Membership
from cloister.federation.session import Session
from cloister.federation.task import Task
from cloister.federation.trainer import Trainer
from cloister.federation.watch import Watch
from cloister.plan.site import Address
from cloister.ratls.node import Node
from cloister.storage.mirror.subject import MirrorPlace
from cloister.storage.records import DataSource


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What the worker's site decides.

    Attributes:
        enrolment: The server's enrolment port.
        training: The server's training port.
        patience_seconds: How long to wait for a server to appear, at first and after
            each time that it went away.
        graph_path: Where the sealed graph goes, if the plan has this node seal it.
    """

    enrolment: Address
    training: Address
    patience_seconds: float
    graph_path: Path


async def work(  # noqa: PLR0913 - all it takes to train
    node: Node,
    task: Task,
    *,
    source: DataSource,
    custodian: Custodian,
    settings: WorkerSettings,
    mirror: MirrorPlace | None,
    former: MirrorPlace | None,
    log: FilteringBoundLogger,
    elapsed: Callable[[], float] = time.monotonic,
) -> None:
    """Trains as one worker of the plan until training is over.

    Args:
        node: The worker's node; its custodian has warranted it.
        task: The plan's task.
        source: The party's data.
        custodian: The line to its party's custodian.
        settings: What the site decides.
        mirror: Where a learner's own state is kept; None where the node has no state
            key.
        former: Where it was kept under the plan before, of an amended plan; None
            where the plan has no predecessor.
        log: One line for each decision, and for each round.
        elapsed: A counter of seconds; it says how long the custodian was silent.

    Raises:
        VerificationError: If the server is refused or refuses, if it is behind what
            the party knows of the run, or another node has taken this one's place.
        CloisterError: If the data does not fit, or server or custodian stay away; if
            the learner's state cannot be kept, or is not there.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="learner")
    # The thread ends first: a state may be on its way to the disk.
    with (
        closing(
            Trainer(node, task, executor=executor, mirror=mirror, former=former)
        ) as trainer,
        executor,
    ):
        await trainer.prepare(source)
        graph = GraphSealing(node, trainer, path=settings.graph_path, log=log)
        await graph.rehearse()
        deposits = Deposits(
            custodian,
            silence_seconds=node.plan.admission.custodian_silence_seconds,
            log=log,
            elapsed=elapsed,
        )
        membership = Membership(
            node,
            custodian,
            model=trainer.model,
            wire=trainer.wire,
            enrolment=settings.enrolment,
            training=settings.training,
            patience_seconds=settings.patience_seconds,
            log=log,
        )
        async with membership:
            watch = Watch(node.plan, custodian, deposits, membership)
            session = Session(node, trainer, membership, watch, deposits, log=log)
            await alongside(session.run(graph), membership.keep(), deposits.keep())
