"""The server node: trains with its workers, and at the end seals one model.

It goes on from the newest state in its mirror, or in that of the plan before; from the
plan's start, where nobody knows of any.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from structlog.typing import FilteringBoundLogger

from cloister.errors import ConfigError
from cloister.federation.audit_log import AuditLog
from cloister.federation.coordinator import Coordinator
from cloister.federation.course import course_of
from cloister.federation.custodian import Custodian
from cloister.federation.deposits import Deposits
from cloister.federation.marking import ServerMarks
from cloister.federation.mirroring import ServerMirror
from cloister.federation.model_state import ModelState
from cloister.federation.publisher import ARITHMETIC_THREADS
from cloister.federation.served_run import Outcome, ServedRun, ServerSettings
from cloister.federation.starting_model import Arrays, starting_model
from cloister.federation.strategies.strategy import Strategy
from cloister.federation.task import Task
from cloister.ratls.node import Node
from cloister.storage.mirror.subject import MirrorPlace
from cloister.storage.model_vault import check_recipients

__all__ = ["Outcome", "ServerSettings", "serve"]


async def serve(  # noqa: PLR0913 - all it takes to serve
    node: Node,
    task: Task,
    *,
    custodian: Custodian,
    settings: ServerSettings,
    audit: AuditLog,
    mirror: MirrorPlace,
    former: MirrorPlace | None,
    log: FilteringBoundLogger,
    strategy: Strategy | None = None,
    initial: Arrays | None = None,
    elapsed: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Runs the plan's rounds as its server and seals the model.

    Args:
        node: The server's node; its custodian has warranted it.
        task: The plan's task.
        custodian: The line to its party's custodian.
        settings: What the site decides.
        audit: The run's audit log, open; the caller closes it.
        mirror: Where the server's state is kept; its directory exists. The journal of
            cohorts lies beside it (`mirroring.journal_place`).
        former: Where the state under the plan before was kept, of an amended plan;
            None where the plan has no predecessor.
        log: One line for each decision, and for each round.
        strategy: The plan's own strategy, where it has one.
        initial: The arrays to start from, where it names some (`read_initial`).
        elapsed: A counter of seconds; it says how long the custodian was silent.

    Raises:
        VerificationError: If the run has come further than this server, or a newer
            server has taken its place; or if its own plan refuses its evidence.
        CloisterError: If a port cannot be opened, workers or the custodian stay away,
            or the model or the audit log cannot be written.
    """
    plan = node.plan
    # Now, not after hours of training.
    check_recipients(plan.recipients)
    _check_goes_on(audit)
    model = await asyncio.to_thread(starting_model, plan, task, initial)
    course = course_of(plan, own_strategy=strategy)
    # The threads end before the mirror is closed: one of them may still write.
    with (
        ExitStack() as kept,
        ThreadPoolExecutor(
            ARITHMETIC_THREADS, thread_name_prefix="arithmetic"
        ) as threads,
    ):
        state = ModelState(model, course.optimizer)
        keeper = await asyncio.to_thread(
            ServerMirror.begin,
            state,
            plan=plan,
            place=mirror,
            former=former,
            mark=custodian.mark,
            threads=threads,
        )
        kept.callback(keeper.close)
        _tell_state(keeper, log)
        deposits = Deposits(
            custodian,
            silence_seconds=plan.admission.custodian_silence_seconds,
            log=log,
            elapsed=elapsed,
        )
        marks = ServerMarks(node, deposits, audit=audit)
        coordinator = Coordinator(
            course,
            state,
            keeper=keeper,
            witness=marks,
            audit=audit,
            threads=threads,
            log=log,
        )
        run = ServedRun(
            node,
            task,
            coordinator,
            custodian=custodian,
            deposits=deposits,
            marks=marks,
            settings=settings,
            audit=audit,
            log=log,
        )
        return await run.serve(keeper.newest)


def _check_goes_on(audit: AuditLog) -> None:
    if audit.sealed:
        raise ConfigError(
            "this run is over: its log ends with the sealed model",
            code="run-exists",
            expected="a log without that record",
            remedy="To train again, give the plan a new run.",
        )


def _tell_state(keeper: ServerMirror, log: FilteringBoundLogger) -> None:
    if keeper.survives == "process-death":
        log.warning("mirror-volatile", survives=keeper.survives)
    if keeper.resumed:
        log.info(
            "state-resumed",
            round=keeper.newest.round,
            state=keeper.newest.digest.hex(),
            survives=keeper.survives,
        )
