"""A server at work: introduced to its log, it trains, and seals one model.

Beside the rounds, and as long as they last, it judges its workers' evidence again,
keeps its own warrant in force, and deposits marks with its party's custodian. What it
decides is in the run's audit log before it takes effect.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError
from cloister.federation.alongside import alongside
from cloister.federation.audit_log import AuditLog
from cloister.federation.coordinator import Coordinator
from cloister.federation.custodian import Custodian
from cloister.federation.deposits import Deposits
from cloister.federation.ending import (
    deposit_last_head,
    end_early,
    seal_and_record,
)
from cloister.federation.lineage import check_log
from cloister.federation.marking import ServerMarks
from cloister.federation.ports import Ports
from cloister.federation.published import stopped
from cloister.federation.task import Task
from cloister.federation.warranting import keep_warranted
from cloister.plan.site import Address
from cloister.ratls.node import Node
from cloister.ratls.reappraisal import keep_reappraising
from cloister.storage.mirror.subject import Kept
from cloister.storage.model_vault import SealedModel


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


class ServedRun:
    """A run from the newest state to its end.

    Args:
        node: The server's node.
        task: The plan's task.
        coordinator: Its rounds.
        custodian: The line to its party's custodian.
        deposits: Bring marks there.
        marks: What is brought; the coordinator's witness.
        settings: What the site decides.
        audit: The run's audit log.
        log: One line for each decision.
    """

    def __init__(  # noqa: PLR0913 - all it takes to serve
        self,
        node: Node,
        task: Task,
        coordinator: Coordinator,
        *,
        custodian: Custodian,
        deposits: Deposits,
        marks: ServerMarks,
        settings: ServerSettings,
        audit: AuditLog,
        log: FilteringBoundLogger,
    ) -> None:
        self._node = node
        self._task = task
        self._coordinator = coordinator
        self._custodian = custodian
        self._deposits = deposits
        self._marks = marks
        self._settings = settings
        self._audit = audit
        self._log = log

    async def serve(self, begun: Kept) -> Outcome:
        """Is introduced to its log, trains, and seals the model.

        Args:
            begun: The state that it begins with.

        Raises:
            VerificationError: If the log is not that of the state's own history; or if
                the node's own plan refuses its evidence, or a newer server took its
                place.
            CloisterError: See `serve`.
        """
        node, audit, log = self._node, self._audit, self._log
        check_log(begun, node.plan, audit.past)
        ports = Ports(
            node,
            self._coordinator,
            enrolment=self._settings.enrolment,
            training=self._settings.training,
            audit=audit,
            log=log,
        )
        ports.table.advance(begun.round)
        for (role, party), epoch in audit.newest.items():
            ports.table.learn(role, party, epoch)
        # In a thread: a quote takes a while, and collateral may have to be fetched.
        await asyncio.to_thread(
            audit.introduce,
            completed=begun.round,
            state=begun.digest,
            admission_key=ports.admission_key,
        )
        log.info(
            "audit-opened",
            records=audit.length,
            dropped_bytes=audit.dropped_bytes,
            audit_head=audit.head.hex(),
        )
        try:
            outcome = await self._train(ports, begun)
        except CloisterError as error:
            await self._give_up(error)
            raise
        except asyncio.CancelledError:
            await self._give_up(stopped())
            raise
        await deposit_last_head(
            node, self._custodian, ending=self._coordinator.ending, audit=audit, log=log
        )
        return outcome

    async def _train(self, ports: Ports, begun: Kept) -> Outcome:
        """Trains to the end and seals the model, while the ports are open."""
        node, coordinator, log = self._node, self._coordinator, self._log
        audit, deposits, marks = self._audit, self._deposits, self._marks
        marks.offer(begun)
        # Before anybody can have the first model: the party knows of this server.
        await alongside(deposits.begun(), deposits.keep())
        coordinator.subscribe(marks.publish)
        loop = asyncio.get_running_loop()

        def recorded() -> None:
            # Whatever thread records; and so that many records are one deposit.
            loop.call_soon_threadsafe(marks.follow)

        async with ports:
            try:
                with audit.telling(recorded):
                    return await alongside(
                        self._rounds(),
                        deposits.keep(),
                        keep_warranted(node, self._custodian, audit=audit, log=log),
                        keep_reappraising(node, ports.table, audit=audit, log=log),
                    )
            except CloisterError as error:
                await self._end_calls(error)
                await coordinator.farewell()
                raise
            except asyncio.CancelledError:
                await self._end_calls(stopped())
                raise

    async def _rounds(self) -> Outcome:
        coordinator, plan, log = self._coordinator, self._node.plan, self._log
        rounds = plan.training.rounds
        metrics = await coordinator.run(
            patience_seconds=self._settings.patience_seconds,
            extra_seconds=plan.admission.custodian_silence_seconds,
        )
        log.info("evaluation", round=rounds, metrics=metrics)
        # Before the model is sealed: a server that was replaced must not seal one, and
        # a run whose end nobody remembers could be trained and sealed once more.
        await self._deposits.settled()
        sealed = await seal_and_record(
            self._node,
            self._task,
            coordinator.model,
            metrics=metrics,
            ending=coordinator.ending,
            path=self._settings.model_path,
            audit=self._audit,
            log=log,
        )
        # Not before: a server that dies while it seals needs its workers once more.
        coordinator.release()
        return Outcome(metrics=metrics, rounds=rounds, sealed=sealed)

    async def _end_calls(self, error: CloisterError) -> None:
        """Ends all calls: with the failure, unless the run was over before it."""
        if self._audit.sealed:
            self._coordinator.release()
        else:
            await self._coordinator.fail(error)

    async def _give_up(self, error: CloisterError) -> None:
        # A model that is sealed is no failure: nothing comes after it.
        if self._audit.sealed:
            return
        await self._coordinator.fail(error)
        await end_early(
            self._node,
            self._coordinator,
            error,
            custodian=self._custodian,
            audit=self._audit,
            log=self._log,
        )
