"""The worker node: enrols, then trains round by round until the server says final.

Nothing of a single party is logged here but counts and times: a worker's own loss or
accuracy would tell its host about its data, so metrics leave it only for the server's
aggregate.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ProtocolError
from cloister.federation.alongside import alongside
from cloister.federation.countersigning import countersign_head
from cloister.federation.custodian import Custodian
from cloister.federation.deposits import Deposits
from cloister.federation.graph_sealing import GraphSealing
from cloister.federation.membership import Membership
from cloister.federation.messages import FinalReport, ModelHeader, UpdateHeader
from cloister.federation.task import Task
from cloister.federation.trainer import Trainer
from cloister.federation.watch import Watch
from cloister.plan.plan import Plan
from cloister.plan.site import Address
from cloister.ratls.node import Node
from cloister.storage.records import DataSource

Result = TypeVar("Result")

# The server's words for a round that was over, and for one that cannot wait.
_LATE, _SLOW = "update-late", "transfer-slow"
_SUPERSEDED = "model-superseded"
# Its place went to others who waited, so it may come again; but not for ever.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What the worker's site decides.

    Attributes:
        enrolment: The server's enrolment port.
        training: The server's training port.
        patience_seconds: How long to wait for a server to appear.
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
        log: One line for each decision, and for each round.
        elapsed: A counter of seconds; it says how long the custodian was silent.

    Raises:
        VerificationError: If the server is refused or refuses, if it is behind what
            the party knows of the run, or another node has taken this one's place.
        CloisterError: If the data does not fit, or server or custodian go away.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="learner") as executor:
        trainer = Trainer(node, task, executor=executor)
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
            watch = Watch(custodian, deposits, membership)
            session = _Session(node, trainer, membership, watch, deposits, log=log)
            await alongside(session.run(graph), membership.keep(), deposits.keep())


def _check_order(header: ModelHeader, *, after: int, plan: Plan) -> ModelHeader:
    """Returns the header of a model, if its round can be this node's next one.

    Where the plan lets rounds go on without some workers, it is any later one.
    """
    every = plan.rounds.quorum == "all" and plan.rounds.sample is None
    if header.round == after + 1 or (header.round > after and not every):
        return header
    raise ProtocolError(
        "the server skipped a round" if header.round > after else "a round comes again",
        code="round-order",
        expected=f"round {after + 1}" + ("" if every else " or later"),
        got=f"round {header.round}",
    )


class _Session:
    """The rounds, as the worker sees them."""

    def __init__(
        self,
        node: Node,
        trainer: Trainer,
        membership: Membership,
        watch: Watch,
        deposits: Deposits,
        *,
        log: FilteringBoundLogger,
    ) -> None:
        self._node = node
        self._plan = node.plan
        self._rounds = node.plan.training.rounds
        self._trainer = trainer
        self._membership = membership
        self._watch = watch
        self._deposits = deposits
        self._log = log

    async def run(self, graph: GraphSealing) -> None:
        """Trains until the server says final, and reports on the final model."""
        header = await self._lasting(self._receive, self._receive)
        while not header.final:
            header = await self._round(header)
        report = FinalReport(
            evaluation=await self._trainer.evaluate(),
            countersignature=countersign_head(self._node, header),
        )
        # Not after its report: what the plan promises lies there when a run is over.
        await graph.seal()
        # The server seals when all have reported: the party is to know the end first.
        await self._deposits.settled()
        await self._lasting(lambda: self._finish(report), lambda: self._finish(report))
        self._log.info("finished", rounds=self._rounds)

    async def _round(self, header: ModelHeader) -> ModelHeader:
        """Trains one round; returns the header of the next model."""
        trainer, number = self._trainer, header.round
        began = time.monotonic()
        update = await trainer.update(header)
        computed = time.monotonic()
        # No update for a server that the party's own memory does not know.
        await self._deposits.begun()
        following = await self._bring(update, header)
        if following is None:
            # No fault of anybody's: the round went on without it, as the plan allows.
            self._log.info("update-late", round=number)
            following = await self._lasting(self._receive, self._receive)
            return _check_order(following, after=number, plan=self._plan)
        _check_order(following, after=number, plan=self._plan)
        self._log.info(
            "round",
            round=number,
            rounds=self._rounds,
            bytes_sent=trainer.wire.size_bytes,
            bytes_received=trainer.wire.size_bytes,
            compute_seconds=round(computed - began, 6),
            exchange_seconds=round(time.monotonic() - computed, 6),
        )
        return following

    async def _bring(
        self, update: UpdateHeader, model: ModelHeader
    ) -> ModelHeader | None:
        """Brings the update to the server; returns the header of the next model.

        Args:
            update: The update.
            model: Header of the model that it was computed from.

        Returns:
            The header; None if the update came too late for its round.
        """
        send = partial(self._contribute, update, at_once=model.at_once)
        resume = partial(self._resume, update, model)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._lasting(send, resume)
            except ProtocolError as error:
                if error.code == _LATE:
                    return None
                if error.code != _SLOW or attempt == _ATTEMPTS:
                    raise
            self._log.warning("update-slow", round=update.round, attempt=attempt)
            send = resume
        raise RuntimeError("the last attempt returns or raises")

    async def _lasting(
        self,
        act: Callable[[], Awaitable[Result]],
        go_on: Callable[[], Awaitable[Result]],
    ) -> Result:
        """Returns what `act` gives; or `go_on`, if the admission ended meanwhile.

        An admission that ends again before `go_on` is through is an error: a server
        that admits and at once forgets could keep a node busy for ever.
        """
        try:
            return await act()
        except CloisterError as error:
            await self._membership.recover(error)
        return await go_on()

    async def _receive(self) -> ModelHeader:
        """Asks for the current model; anew, where its round ends on the way."""
        while True:
            try:
                async with self._membership.line() as line:
                    return self._watch.check(await line.receive(), line.server)
            except ProtocolError as error:
                if error.code != _SUPERSEDED:
                    raise
            self._log.info("model-superseded")

    async def _contribute(self, update: UpdateHeader, *, at_once: bool) -> ModelHeader:
        try:
            async with self._membership.line() as line:
                header = await line.contribute(
                    update, self._trainer.out, at_once=at_once
                )
                return self._watch.check(header, line.server)
        except ProtocolError as error:
            if error.code != _SUPERSEDED:
                raise
        # The update counts; only the model that came for it is of the past.
        return await self._receive()

    async def _resume(self, update: UpdateHeader, model: ModelHeader) -> ModelHeader:
        """Goes on where a call was ended; nothing tells whether the update counted.

        The server's current model tells: in a round in which this party was counted it
        gives none before the next one.

        Args:
            update: The update that was sent.
            model: Header of the model that it was computed from.
        """
        header = await self._receive()
        if header.round != update.round:
            return header
        if header.audit_head != model.audit_head:
            # Another server, so another log.
            signature = countersign_head(self._node, header)
            update = msgspec.structs.replace(update, countersignature=signature)
        return await self._contribute(update, at_once=header.at_once)

    async def _finish(self, report: FinalReport) -> None:
        async with self._membership.line() as line:
            await line.finish(report)
