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
from typing import TypeVar

import msgspec
from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ProtocolError, VerificationError
from cloister.federation.alongside import alongside
from cloister.federation.countersigning import countersign_head
from cloister.federation.custodian import Custodian
from cloister.federation.deposits import Deposits
from cloister.federation.marks import check_onward
from cloister.federation.membership import Membership
from cloister.federation.messages import FinalReport, ModelHeader, UpdateHeader
from cloister.federation.task import Task
from cloister.federation.trainer import Trainer
from cloister.plan.site import Address
from cloister.ratls.admission_table import Peer
from cloister.ratls.epochs import Epoch
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.storage.records import DataSource

Result = TypeVar("Result")


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
        deposits = Deposits(
            custodian,
            silence_seconds=node.plan.admission.custodian_silence_seconds,
            log=log,
            elapsed=elapsed,
        )
        membership = Membership(
            node,
            custodian,
            trainer.model,
            enrolment=settings.enrolment,
            training=settings.training,
            patience_seconds=settings.patience_seconds,
            log=log,
        )
        async with membership:
            watch = Watch(custodian, deposits, membership)
            session = _Session(node, trainer, membership, watch, deposits, log=log)
            await alongside(session.run(), membership.keep(), deposits.keep())


class Watch:
    """Looks at every model's header: is the server where this party knows it to be?

    Args:
        custodian: Knows the party's mark.
        deposits: Brings new marks to it.
        membership: Is told of the rounds.
    """

    def __init__(
        self, custodian: Custodian, deposits: Deposits, membership: Membership
    ) -> None:
        self._custodian = custodian
        self._deposits = deposits
        self._membership = membership
        self._server: Epoch | None = None
        self._completed = 0
        self._seen: ModelHeader | None = None

    def check(self, header: ModelHeader, server: Peer) -> ModelHeader:
        """Returns the header of a model, if this node may train for its server.

        Raises:
            VerificationError: If the server, met for the first time, is behind what
                this party knows, or contradicts it; or if it sends a second head of its
                audit log for one round.
        """
        if server.node == self._server:
            _check_one_head(header, self._seen)
        else:
            known = self._custodian.mark
            check_onward(header, known, completed=self._completed)
            _check_stated(header, known, server)
            self._server = server.node
            if known is not None:
                # Nothing new, where the server says no state now; but the custodian
                # must be there before anything is done for this server.
                self._deposits.offer(known)
        self._seen = header
        self._completed = max(self._completed, header.round - 1)
        self._membership.note_round(header.round)
        if header.state is not None:
            mark = Mark(
                round=header.round - 1,
                state=header.state,
                server_epoch=server.node.number,
                server_key=server.node.key,
                audit_head=header.audit_head,
            )
            self._deposits.offer(mark)
        return header


def _check_one_head(header: ModelHeader, seen: ModelHeader | None) -> None:
    """Refuses a second head for a round: its server may show two logs."""
    if seen is None or header.round != seen.round:
        return
    if header.audit_head != seen.audit_head:
        raise VerificationError(
            f"the server sends another audit head for round {header.round}",
            code="audit-forked",
            expected=seen.audit_head.hex(),
            got=header.audit_head.hex(),
            remedy="This node signs one head a round. Compare the heads that the"
            " parties' custodians have with the server's log.",
        )


def _check_stated(header: ModelHeader, known: Mark | None, server: Peer) -> None:
    """Refuses a server that the party does not know and that gives it nothing to know.

    Silence would be a way round the first deposit: without a mark nothing waits.
    """
    if header.state is not None:
        return
    if known is None or Epoch(known.server_epoch, known.server_key) != server.node:
        raise VerificationError(
            "a server that this party does not know states no state",
            code="state-unstated",
            expected="the digest of its state with its first model",
            got="none",
            remedy="Start the server anew; if this party's mark was forgotten in the"
            " middle of a run, the run is over.",
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
        self._rounds = node.plan.training.rounds
        self._trainer = trainer
        self._membership = membership
        self._watch = watch
        self._deposits = deposits
        self._log = log

    async def run(self) -> None:
        """Trains until the server says final, and reports on the final model."""
        header = await self._lasting(self._receive, self._receive)
        while not header.final:
            header = await self._round(header)
        report = FinalReport(
            evaluation=await self._trainer.evaluate(),
            countersignature=countersign_head(self._node, header),
        )
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
        header = await self._lasting(
            lambda: self._contribute(update), lambda: self._resume(update, header)
        )
        if header.round != number + 1:
            raise ProtocolError(
                "the server skipped a round",
                code="round-order",
                expected=str(number + 1),
                got=str(header.round),
            )
        self._log.info(
            "round",
            round=number,
            rounds=self._rounds,
            bytes_sent=trainer.out.layout.size_bytes,
            bytes_received=trainer.model.layout.size_bytes,
            compute_seconds=round(computed - began, 6),
            exchange_seconds=round(time.monotonic() - computed, 6),
        )
        return header

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
        async with self._membership.line() as line:
            return self._watch.check(await line.receive(), line.server)

    async def _contribute(self, update: UpdateHeader) -> ModelHeader:
        async with self._membership.line() as line:
            header = await line.contribute(update, self._trainer.out)
            return self._watch.check(header, line.server)

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
        return await self._contribute(update)

    async def _finish(self, report: FinalReport) -> None:
        async with self._membership.line() as line:
            await line.finish(report)
