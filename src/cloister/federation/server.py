"""The server node: trains with its workers, and at the end seals one model.

Beside the rounds, and as long as they last, it judges its workers' evidence again,
keeps its own warrant in force, and deposits marks with its party's custodian.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ProtocolError
from cloister.federation.alongside import alongside
from cloister.federation.coordinator import Coordinator
from cloister.federation.course import course_of
from cloister.federation.custodian import Custodian
from cloister.federation.deposits import Deposits
from cloister.federation.layout import ModelBuffer
from cloister.federation.marks import check_fresh_start, check_start
from cloister.federation.messages import ModelHeader
from cloister.federation.ports import Ports
from cloister.federation.task import Task
from cloister.federation.task_loading import task_code
from cloister.federation.warranting import keep_warranted
from cloister.plan.plan import Plan
from cloister.plan.site import Address
from cloister.ratls.epochs import key_digest
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.reappraisal import keep_reappraising
from cloister.storage.model_vault import SealedModel, check_recipients, seal_model


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


async def serve(
    node: Node,
    task: Task,
    *,
    custodian: Custodian,
    settings: ServerSettings,
    log: FilteringBoundLogger,
    elapsed: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Runs the plan's rounds as its server and seals the model.

    Args:
        node: The server's node; its custodian has warranted it.
        task: The plan's task.
        custodian: The line to its party's custodian.
        settings: What the site decides.
        log: One line for each decision, and for each round.
        elapsed: A counter of seconds; it says how long the custodian was silent.

    Raises:
        VerificationError: If the run has come further than this server, or a newer
            server has taken its place.
        CloisterError: If a port cannot be opened, workers or the custodian stay away,
            or the model cannot be written.
    """
    plan = node.plan
    # Now, not after hours of training.
    check_recipients(plan.model.recipients)
    check_fresh_start(plan, custodian.mark)
    model = await asyncio.to_thread(_initial_model, plan, task)
    coordinator = Coordinator(course_of(plan, model), model, log=log)
    deposits = Deposits(
        custodian,
        silence_seconds=plan.admission.custodian_silence_seconds,
        log=log,
        elapsed=elapsed,
    )
    deposits.offer(_mark(node, 0, check_start(plan, coordinator.initial_state())))
    # Before anybody can have the first model: the party knows of this server.
    await alongside(deposits.begun(), deposits.keep())
    coordinator.subscribe(lambda header: _deposit(header, node, deposits))
    ports = Ports(
        node,
        coordinator,
        enrolment=settings.enrolment,
        training=settings.training,
        log=log,
    )
    async with ports:
        try:
            metrics = await alongside(
                _train(coordinator, deposits, plan, settings),
                deposits.keep(),
                keep_warranted(node, custodian, log=log),
                keep_reappraising(node, ports.table, log=log),
            )
        except CloisterError as error:
            await coordinator.fail(error)
            await coordinator.farewell()
            raise
        except asyncio.CancelledError:
            await coordinator.fail(
                ProtocolError(
                    "the server was stopped",
                    code="server-stopped",
                    expected="a run to its end",
                    got="an interruption at the server",
                )
            )
            raise
        log.info("evaluation", round=plan.training.rounds, metrics=metrics)
    sealed = await asyncio.to_thread(_seal, node, task, model, metrics, settings)
    log.info("model-sealed", size_bytes=sealed.size_bytes, sha256=sealed.sha256)
    return Outcome(metrics=metrics, rounds=plan.training.rounds, sealed=sealed)


async def _train(
    coordinator: Coordinator, deposits: Deposits, plan: Plan, settings: ServerSettings
) -> dict[str, float]:
    metrics = await coordinator.run(
        patience_seconds=settings.patience_seconds,
        extra_seconds=plan.admission.custodian_silence_seconds,
    )
    # Before the model is sealed: a server that was replaced must not seal one, and a
    # run whose end nobody remembers could be trained and sealed once more.
    await deposits.settled()
    return metrics


def _deposit(header: ModelHeader, node: Node, deposits: Deposits) -> None:
    if header.state is not None:
        deposits.offer(_mark(node, header.round - 1, header.state))


def _mark(node: Node, completed: int, state: bytes) -> Mark:
    return Mark(
        round=completed,
        state=state,
        server_epoch=node.warrant.current.terms.epoch,
        server_key=key_digest(node.identity.tls_spki),
    )


def _initial_model(plan: Plan, task: Task) -> ModelBuffer:
    with task_code(plan.task.file, "making the model", simulated=plan.simulated):
        return task.initial_model(seed=plan.training.seed)


def _seal(
    node: Node,
    task: Task,
    model: ModelBuffer,
    metrics: dict[str, float],
    settings: ServerSettings,
) -> SealedModel:
    plan = node.plan
    with task_code(plan.task.file, "exporting the model", simulated=plan.simulated):
        arrays = task.export(model)
    return seal_model(
        arrays,
        metadata={
            "run": plan.run_id,
            "plan": node.plan_hash.hex(),
            "rounds": str(plan.training.rounds),
            "simulated": str(plan.simulated).lower(),
            **{f"metric.{name}": repr(value) for name, value in metrics.items()},
        },
        recipients=plan.model.recipients,
        path=settings.model_path,
    )
