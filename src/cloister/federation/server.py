"""The server node: trains with its workers, and at the end seals one model.

Beside the rounds, and as long as they last, it judges its workers' evidence again,
keeps its own warrant in force, and deposits marks with its party's custodian. What it
decides is in the run's audit log before it takes effect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ProtocolError, StorageError
from cloister.federation.alongside import alongside
from cloister.federation.audit_log import AuditLog
from cloister.federation.coordinator import Coordinator
from cloister.federation.course import course_of
from cloister.federation.custodian import Custodian
from cloister.federation.deposits import Deposits
from cloister.federation.ending import deposit_last_head, seal_and_record
from cloister.federation.marks import check_fresh_start, check_start, server_mark
from cloister.federation.messages import ModelHeader
from cloister.federation.ports import Ports
from cloister.federation.publisher import ARITHMETIC_THREADS
from cloister.federation.starting_model import Arrays, starting_model
from cloister.federation.strategies.strategy import Strategy
from cloister.federation.task import Task
from cloister.federation.warranting import keep_warranted
from cloister.plan.site import Address
from cloister.ratls.node import Node
from cloister.ratls.reappraisal import keep_reappraising
from cloister.storage.model_vault import SealedModel, check_recipients


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What the server's site decides.

    Attributes:
        enrolment: Where the enrolment port listens.
        training: Where the training port listens.
        patience_seconds: Longest silence before the run is given up.
        model_path: Where the sealed model goes.
    """

    enrolment: Address
    training: Address
    patience_seconds: float
    model_path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished run.

    Attributes:
        metrics: The final model's metrics over all held-out examples.
        rounds: Rounds trained.
        sealed: The sealed model.
    """

    metrics: dict[str, float]
    rounds: int
    sealed: SealedModel


async def serve(  # noqa: PLR0913 - all it takes to serve
    node: Node,
    task: Task,
    *,
    custodian: Custodian,
    settings: ServerSettings,
    audit: AuditLog,
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
    check_fresh_start(plan, custodian.mark)
    model = await asyncio.to_thread(starting_model, plan, task, initial)
    course = course_of(plan, own_strategy=strategy)
    with ThreadPoolExecutor(
        ARITHMETIC_THREADS, thread_name_prefix="arithmetic"
    ) as threads:
        coordinator = Coordinator(course, model, audit=audit, threads=threads, log=log)
        return await _serve(
            node,
            task,
            coordinator,
            custodian=custodian,
            settings=settings,
            audit=audit,
            log=log,
            elapsed=elapsed,
        )


async def _serve(  # noqa: PLR0913 - all it takes to serve
    node: Node,
    task: Task,
    coordinator: Coordinator,
    *,
    custodian: Custodian,
    settings: ServerSettings,
    audit: AuditLog,
    log: FilteringBoundLogger,
    elapsed: Callable[[], float],
) -> Outcome:
    plan = node.plan
    state = check_start(plan, coordinator.initial_state())
    ports = Ports(
        node,
        coordinator,
        enrolment=settings.enrolment,
        training=settings.training,
        audit=audit,
        log=log,
    )
    for (role, party), epoch in audit.newest.items():
        ports.table.learn(role, party, epoch)
    # In a thread: a quote takes a while, and collateral may have to be fetched.
    await asyncio.to_thread(
        audit.introduce, completed=0, state=state, admission_key=ports.admission_key
    )
    log.info(
        "audit-opened",
        records=audit.length,
        dropped_bytes=audit.dropped_bytes,
        audit_head=audit.head.hex(),
    )
    server = _Server(node, coordinator, custodian=custodian, audit=audit, log=log)
    try:
        metrics = await server.train(
            ports, state, patience_seconds=settings.patience_seconds, elapsed=elapsed
        )
        ending = coordinator.ending
        sealed = await seal_and_record(
            node,
            task,
            coordinator.model,
            metrics=metrics,
            ending=ending,
            path=settings.model_path,
            audit=audit,
            log=log,
        )
    except CloisterError as error:
        _record_failure(audit, error, log=log)
        raise
    except asyncio.CancelledError:
        # A model that is sealed is no failure: nothing comes after it.
        if not audit.sealed:
            _record_failure(audit, _stopped(), log=log)
        raise
    await deposit_last_head(node, custodian, ending=ending, audit=audit, log=log)
    return Outcome(metrics=metrics, rounds=plan.training.rounds, sealed=sealed)


class _Server:
    """A server that was introduced to its audit log."""

    def __init__(
        self,
        node: Node,
        coordinator: Coordinator,
        *,
        custodian: Custodian,
        audit: AuditLog,
        log: FilteringBoundLogger,
    ) -> None:
        self._node = node
        self._coordinator = coordinator
        self._custodian = custodian
        self._audit = audit
        self._log = log

    async def train(
        self,
        ports: Ports,
        state: bytes,
        *,
        patience_seconds: float,
        elapsed: Callable[[], float],
    ) -> dict[str, float]:
        """Trains to the end; returns the final model's metrics."""
        node, coordinator, log = self._node, self._coordinator, self._log
        deposits = Deposits(
            self._custodian,
            silence_seconds=node.plan.admission.custodian_silence_seconds,
            log=log,
            elapsed=elapsed,
        )
        deposits.offer(
            server_mark(node, completed=0, state=state, audit_head=self._audit.head)
        )
        # Before anybody can have the first model: the party knows of this server.
        await alongside(deposits.begun(), deposits.keep())
        coordinator.subscribe(lambda header: _deposit(header, node, deposits))
        loop, audit = asyncio.get_running_loop(), self._audit

        def recorded() -> None:
            # Whatever thread records; and so that many records are one deposit.
            loop.call_soon_threadsafe(lambda: deposits.follow(audit.head))

        async with ports:
            try:
                with audit.telling(recorded):
                    metrics = await alongside(
                        self._rounds(deposits, patience_seconds),
                        deposits.keep(),
                        keep_warranted(node, self._custodian, audit=audit, log=log),
                        keep_reappraising(node, ports.table, audit=audit, log=log),
                    )
            except CloisterError as error:
                await coordinator.fail(error)
                await coordinator.farewell()
                raise
            except asyncio.CancelledError:
                await coordinator.fail(_stopped())
                raise
            log.info("evaluation", round=node.plan.training.rounds, metrics=metrics)
        return metrics

    async def _rounds(
        self, deposits: Deposits, patience_seconds: float
    ) -> dict[str, float]:
        metrics = await self._coordinator.run(
            patience_seconds=patience_seconds,
            extra_seconds=self._node.plan.admission.custodian_silence_seconds,
        )
        # Before the model is sealed: a server that was replaced must not seal one, and
        # a run whose end nobody remembers could be trained and sealed once more.
        await deposits.settled()
        return metrics


def _record_failure(
    audit: AuditLog, error: CloisterError, *, log: FilteringBoundLogger
) -> None:
    try:
        audit.run_failed(error)
    except StorageError as unwritable:
        # Often it is just what the run failed of.
        log.warning(
            "failure-not-recorded", code=unwritable.code, reason=str(unwritable)
        )


def _stopped() -> ProtocolError:
    return ProtocolError(
        "the server was stopped",
        code="server-stopped",
        expected="a run to its end",
        got="an interruption at the server",
    )


def _deposit(header: ModelHeader, node: Node, deposits: Deposits) -> None:
    if header.state is not None:
        mark = server_mark(
            node,
            completed=header.round - 1,
            state=header.state,
            audit_head=header.audit_head,
        )
        deposits.offer(mark)
