"""The worker node: enrols, then trains round by round until the server says final.

Nothing of a single party is logged here but counts and times: a worker's own loss or
accuracy would tell its host about its data, so metrics leave it only for the server's
aggregate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import grpc
from structlog.typing import FilteringBoundLogger

from cloister.errors import ProtocolError, RefusedByPeer
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import (
    CONTRIBUTE,
    FINISH,
    RECEIVE,
    EvaluationReport,
    FinalReport,
    Finished,
    ModelHeader,
    ModelRequest,
    UpdateHeader,
    decode_header,
    encode_header,
)
from cloister.federation.rounds import check_layout
from cloister.federation.task import Evaluation, Learner, LearnerSettings, Task
from cloister.federation.task_loading import task_code
from cloister.federation.transfer import Receiver, chunks_of
from cloister.plan.site import Address
from cloister.ratls.channels import MAX_CHUNK_BYTES, ClientTls, open_channel
from cloister.ratls.enrolment_service import Enrolled, describe_peer, enrol
from cloister.ratls.node import Node
from cloister.ratls.refusals import decode_status, one_line, refused_by_peer
from cloister.storage.records import DataSource

Result = TypeVar("Result")
Reply: TypeAlias = (
    "grpc.aio.UnaryStreamCall[bytes, bytes] | grpc.aio.StreamStreamCall[bytes, bytes]"
)
_UnaryStream: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]"
_StreamStream: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"
_UnaryUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What the worker's site decides.

    Attributes:
        enrolment: The server's enrolment port.
        training: The server's training port.
        patience_seconds: How long to wait for a server to appear.
    """

    enrolment: Address
    training: Address
    patience_seconds: float


async def work(
    node: Node,
    task: Task,
    *,
    source: DataSource,
    settings: WorkerSettings,
    log: FilteringBoundLogger,
) -> None:
    """Trains as one worker of the plan until training is over.

    Raises:
        CloisterError: If the data does not fit, the server is refused or refuses, or
            it goes away.
    """
    # One thread for all of the task's work: frameworks keep state by thread, and a
    # thread made for every step costs more than the step in an enclave.
    with ThreadPoolExecutor(1, thread_name_prefix="learner") as executor:
        trainer = _Trainer(node, task, executor=executor)
        await trainer.prepare(source)
        enrolled = await _enrol_with_patience(node, settings, log)
        log.info("server-attested", **describe_peer(enrolled.server))
        channel = open_channel(
            settings.training,
            pinned_certificate=enrolled.server_certificate,
            max_message_bytes=MAX_CHUNK_BYTES,
            client=ClientTls(
                identity=node.identity,
                admission_certificate=enrolled.admission_certificate,
            ),
        )
        async with channel:
            await _train(_Line(channel, trainer.model), trainer, node, log)


async def _train(
    line: _Line, trainer: _Trainer, node: Node, log: FilteringBoundLogger
) -> None:
    header = await line.receive()
    while not header.final:
        began = time.monotonic()
        update = await trainer.update(header)
        computed = time.monotonic()
        number = header.round
        header = await line.contribute(update, trainer.out)
        if header.round != number + 1:
            raise ProtocolError(
                "the server skipped a round",
                code="round-order",
                expected=str(number + 1),
                got=str(header.round),
            )
        log.info(
            "round",
            round=number,
            rounds=node.plan.training.rounds,
            bytes_sent=trainer.out.layout.size_bytes,
            bytes_received=trainer.model.layout.size_bytes,
            compute_seconds=round(computed - began, 6),
            exchange_seconds=round(time.monotonic() - computed, 6),
        )
    await line.finish(await trainer.evaluate())
    log.info("finished", rounds=node.plan.training.rounds)


class _Trainer:
    """The task at work in its own thread.

    Attributes:
        model: Receives each round's model.
        out: Holds the update of the round.
    """

    def __init__(self, node: Node, task: Task, *, executor: ThreadPoolExecutor) -> None:
        self._plan = node.plan
        self._party = node.party
        self._task = task
        self._executor = executor
        self._learner: Learner | None = None

    async def prepare(self, source: DataSource) -> None:
        """Lays out the model and opens the data."""
        training = self._plan.training
        initial = await self._run(
            "making the model", lambda: self._task.initial_model(seed=training.seed)
        )
        self.model = initial
        self.out = ModelBuffer(initial.layout)
        settings = LearnerSettings(
            party=self._party,
            batch_size=training.batch_size,
            seed=training.seed,
            threads=training.threads,
            precision=training.precision,
        )
        self._learner = await self._run(
            "opening the data", lambda: self._task.learner(source, settings)
        )

    async def update(self, header: ModelHeader) -> UpdateHeader:
        """Computes the update of a round from the model just received."""
        learner = self._ready()
        await self._run("loading the model", lambda: learner.load(self.model))
        evaluation = None
        if header.evaluate:
            evaluation = _report(await self._run("evaluating", learner.evaluate))
        report = await self._run(
            "training", lambda: learner.step(header.round, self.out)
        )
        return UpdateHeader(
            round=header.round,
            layout=header.layout,
            examples=report.examples,
            loss_sum=report.loss_sum,
            evaluation=evaluation,
        )

    async def evaluate(self) -> EvaluationReport:
        """Evaluates the model just received."""
        learner = self._ready()
        await self._run("loading the model", lambda: learner.load(self.model))
        return _report(await self._run("evaluating", learner.evaluate))

    def _ready(self) -> Learner:
        if self._learner is None:
            raise RuntimeError("prepare first")
        return self._learner

    async def _run(self, doing: str, step: Callable[[], Result]) -> Result:
        plan = self._plan

        def guarded() -> Result:
            with task_code(plan.task.file, doing, simulated=plan.simulated):
                return step()

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, guarded)


class _Line:
    """The worker's calls on the training port; models land in one buffer."""

    def __init__(self, channel: grpc.aio.Channel, model: ModelBuffer) -> None:
        self._receive: _UnaryStream = channel.unary_stream(RECEIVE)
        self._contribute: _StreamStream = channel.stream_stream(CONTRIBUTE)
        self._finish: _UnaryUnary = channel.unary_unary(FINISH)
        self._model = model
        self._layout = model.layout.digest()

    async def receive(self) -> ModelHeader:
        """Asks for the current model; returns once all workers have come."""
        request = encode_header(ModelRequest(layout=self._layout))
        return await self._take_model(self._receive(request))

    async def contribute(
        self, header: UpdateHeader, update: ModelBuffer
    ) -> ModelHeader:
        """Sends an update and receives the next round's model."""

        async def messages() -> AsyncIterator[bytes]:
            yield encode_header(header)
            for chunk in chunks_of(update):
                yield chunk

        return await self._take_model(self._contribute(messages()))

    async def finish(self, report: EvaluationReport) -> None:
        """Sends the report on the final model."""
        try:
            reply = await self._finish(encode_header(FinalReport(evaluation=report)))
        except grpc.aio.AioRpcError as error:
            raise _explain(error) from error
        decode_header(reply, Finished)

    async def _take_model(self, reply: Reply) -> ModelHeader:
        receiver = Receiver(self._model)
        header: ModelHeader | None = None
        try:
            async for message in reply:
                if header is None:
                    header = decode_header(message, ModelHeader)
                    check_layout("the server", expected=self._layout, got=header.layout)
                else:
                    receiver.feed(message)
        except grpc.aio.AioRpcError as error:
            raise _explain(error) from error
        if header is None:
            raise ProtocolError("the server sent no model", code="model-missing")
        receiver.finish()
        return header


async def _enrol_with_patience(
    node: Node, settings: WorkerSettings, log: FilteringBoundLogger
) -> Enrolled:
    """Enrols, waiting for a server that is not there yet."""
    give_up = time.monotonic() + settings.patience_seconds
    pause = _FIRST_RETRY_SECONDS
    waiting = False
    while True:
        try:
            return await enrol(node, settings.enrolment)
        except ProtocolError as error:
            if error.code != "server-unreachable" or time.monotonic() >= give_up:
                raise
        if not waiting:
            log.info("waiting-for-server", enrolment=str(settings.enrolment))
            waiting = True
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LAST_RETRY_SECONDS)


def _report(evaluation: Evaluation) -> EvaluationReport:
    return EvaluationReport(examples=evaluation.examples, sums=dict(evaluation.sums))


def _explain(error: grpc.aio.AioRpcError) -> ProtocolError | RefusedByPeer:
    """Returns our own error for a call the server ended, or that broke."""
    if error.code() is grpc.StatusCode.PERMISSION_DENIED:
        return refused_by_peer("the server", decode_status(error.details()))
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        refusal = decode_status(error.details())
        return ProtocolError(
            f"the server ended the call: {refusal.what}",
            code=refusal.code,
            expected=refusal.expected,
            got=refusal.got,
        )
    return ProtocolError(
        "the server went away",
        code="server-gone",
        expected="an answer",
        got=f"{error.code().name}: {one_line((error.details() or '')[:200])}",
        remedy="Its log says why; start the run again.",
    )
