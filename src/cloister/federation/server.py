"""The server node: two ports, one coordinator, and at the end one sealed model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import grpc
from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ProtocolError
from cloister.federation.coordinator import Coordinator, Course
from cloister.federation.layout import ModelBuffer
from cloister.federation.strategies.schedules import LearningRate
from cloister.federation.strategies.sgd import Sgd
from cloister.federation.task import Task
from cloister.federation.task_loading import task_code
from cloister.federation.training_service import TrainingService
from cloister.plan.plan import Plan
from cloister.plan.site import Address
from cloister.ratls.admission import AdmissionTable, new_authority
from cloister.ratls.certificate import make_certificate
from cloister.ratls.challenge import MAX_MESSAGE_BYTES
from cloister.ratls.channels import (
    MAX_CHUNK_BYTES,
    enrolment_credentials,
    listen,
    prove_tls13_only,
    server_options,
    training_credentials,
)
from cloister.ratls.enrolment_service import EnrolmentService
from cloister.ratls.node import Node
from cloister.storage.model_vault import SealedModel, check_recipients, seal_model

# A server's certificate outlives no run we know; a new run makes new keys.
CERTIFICATE_LIFE = timedelta(days=30)
# Time for the last answers to reach the workers before the ports close.
_GRACE_SECONDS = 3.0


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
    node: Node, task: Task, *, settings: ServerSettings, log: FilteringBoundLogger
) -> Outcome:
    """Runs the plan's rounds as its server and seals the model.

    Raises:
        CloisterError: If a port cannot be opened, workers stay away, or the model
            cannot be written.
    """
    plan = node.plan
    # Now, not after hours of training.
    check_recipients(plan.model.recipients)
    model = await asyncio.to_thread(_initial_model, plan, task)
    coordinator = Coordinator(course_of(plan, model), model, log=log)
    async with Ports(node, coordinator, settings=settings, log=log):
        try:
            metrics = await coordinator.run(patience_seconds=settings.patience_seconds)
        except CloisterError as error:
            await coordinator.fail(error)
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


def course_of(plan: Plan, model: ModelBuffer) -> Course:
    """Returns what the plan fixes about the run of a model."""
    training = plan.training
    return Course(
        parties=tuple(p.name for p in plan.workers),
        rounds=training.rounds,
        evaluate_every=plan.rounds.evaluate_every,
        examples=training.batch_size,
        optimizer=Sgd(
            momentum=training.optimizer.momentum,
            weight_decay=training.optimizer.weight_decay,
            decay_mask=model.layout.decay_mask(),
        ),
        learning_rate=LearningRate(
            name=training.schedule.name,
            peak=training.optimizer.learning_rate,
            rounds=training.rounds,
            warmup_rounds=training.schedule.warmup_rounds,
        ),
    )


class Ports:
    """Both listening ports, open while the context lasts.

    Args:
        node: The server's node.
        coordinator: Runs the rounds.
        settings: Where to listen.
        log: One line for each decision.

    Attributes:
        table: Who is admitted.
    """

    def __init__(
        self,
        node: Node,
        coordinator: Coordinator,
        *,
        settings: ServerSettings,
        log: FilteringBoundLogger,
    ) -> None:
        at = node.clock()
        certificate = make_certificate(
            node.identity, node.platform, at=at, life=CERTIFICATE_LIFE
        )
        authority = new_authority(at=at, life=CERTIFICATE_LIFE)
        self.table = AdmissionTable(node.clock)
        self._settings = settings
        self._log = log
        self._training = grpc.aio.server(options=server_options(MAX_CHUNK_BYTES))
        self._training.add_generic_rpc_handlers(
            (TrainingService(coordinator, table=self.table, log=log),)
        )
        self._training_credentials = training_credentials(
            node.identity, certificate, admission_root_pem=authority.certificate_pem()
        )
        self._enrolment = grpc.aio.server(options=server_options(MAX_MESSAGE_BYTES))
        self._enrolment.add_generic_rpc_handlers(
            (
                EnrolmentService(
                    node,
                    authority=authority,
                    table=self.table,
                    log=log,
                    on_admitted=lambda _: coordinator.touch(),
                ),
            )
        )
        self._enrolment_credentials = enrolment_credentials(node.identity, certificate)

    async def __aenter__(self) -> Self:
        settings = self._settings
        try:
            # The training port first: whoever enrols may call it at once. Each is
            # started before the next one listens, for only what runs can be stopped.
            listen(self._training, settings.training, self._training_credentials)
            await self._training.start()
            await prove_tls13_only(settings.training)
            listen(self._enrolment, settings.enrolment, self._enrolment_credentials)
            await self._enrolment.start()
            await prove_tls13_only(settings.enrolment)
        except BaseException:
            # Also when cancelled: an open port would outlive its server. Raised again.
            await self._stop()
            raise
        self._log.info(
            "listening",
            enrolment=str(settings.enrolment),
            training=str(settings.training),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await self._enrolment.stop(0)
        await self._training.stop(_GRACE_SECONDS)


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
