"""The rounds of a run, as a worker sees them.

A server may die and another take its place at any time. What was computed from the
model of the former is dropped then: the new server's state may be of an earlier round,
and its log has another head to sign. An update goes to nobody but the server whose
model it was computed from.

Nothing of a single party is logged here but counts and times: a worker's own loss or
accuracy would tell its host about its data, so metrics leave it only for the server's
aggregate.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ProtocolError
from cloister.federation.countersigning import countersign_head
from cloister.federation.deposits import Deposits
from cloister.federation.graph_sealing import GraphSealing
from cloister.federation.line import Line
from cloister.federation.membership import Membership
from cloister.federation.messages import FinalReport, ModelHeader, UpdateHeader
from cloister.federation.outages import Ending
from cloister.federation.trainer import Trainer
from cloister.federation.watch import Watch
from cloister.plan.plan import Plan
from cloister.ratls.epochs import Epoch
from cloister.ratls.node import Node

Result = TypeVar("Result")

# The server's words for a round that was over, and for one that cannot wait.
_LATE, _SLOW = "update-late", "transfer-slow"
_SUPERSEDED = "model-superseded"
# Its place went to others who waited, so it may come again; but not for ever.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A model that came, and passed the party's watch.

    Attributes:
        header: What was said of it.
        server: Who said it.
    """

    header: ModelHeader
    server: Epoch


class Session:
    """One worker's part in a run, from its first model to its report.

    Args:
        node: The worker's node.
        trainer: Its task at work.
        membership: Its place in the run.
        watch: Looks at each model's header.
        deposits: Brings marks to the party's custodian.
        log: One line for each round.
    """

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
        """Trains until the server says final, and reports on the final model.

        Raises:
            CloisterError: See `work`.
        """
        model: _Model | None = await self._lasting(self._receive, self._receive)
        while model is not None:
            if model.header.final:
                model = await self._report(model, graph)
            else:
                model = await self._round(model)
        self._log.info("finished", rounds=self._rounds)

    async def _report(self, model: _Model, graph: GraphSealing) -> _Model | None:
        """Reports on the final model; returns another server's, if one came meanwhile.

        That server has heard no report and another log to be signed.
        """
        report = FinalReport(
            evaluation=await self._trainer.evaluate(model.header),
            countersignature=countersign_head(self._node, model.header),
        )
        # Not after its report: what the plan promises lies there when a run is over.
        await graph.seal()
        # The server seals when all have reported: the party is to know the end first.
        await self._deposits.settled()
        finish = partial(self._finish, report, model)
        return await self._lasting(finish, finish)

    async def _round(self, model: _Model) -> _Model:
        """Trains one round; returns the next model."""
        trainer, number = self._trainer, model.header.round
        began = time.monotonic()
        update = await trainer.update(model.header)
        computed = time.monotonic()
        # No update for a server that the party's own memory does not know.
        await self._deposits.begun()
        following = await self._bring(update, model)
        if following is None:
            # No fault of anybody's: the round went on without it, as the plan allows.
            self._log.info("update-late", round=number)
            following = await self._lasting(self._receive, self._receive)
            return self._in_order(following, after=model)
        if following.server != model.server:
            return self._in_order(following, after=model)
        self._in_order(following, after=model)
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

    def _in_order(self, following: _Model, *, after: _Model) -> _Model:
        """Returns a model, if its round can be this node's next one.

        Another server's may be of any round that the watch let through.
        """
        if following.server == after.server:
            _check_order(following.header, after=after.header.round, plan=self._plan)
            return following
        # Nobody says whether the update counted; it was of a model that is past.
        number = after.header.round
        self._log.info(
            "server-changed", round=number, next_round=following.header.round
        )
        return following

    async def _bring(self, update: UpdateHeader, model: _Model) -> _Model | None:
        """Brings the update to the server; returns the next model.

        Args:
            update: The update.
            model: The model that it was computed from.

        Returns:
            The model, which may be another server's; None if the update came too late
            for its round.
        """
        send = partial(self._contribute, update, model)
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
        """Returns what `act` gives; or `go_on`, if the server or the admission went.

        An admission that ends again before `go_on` is through is an error: a server
        that admits and at once forgets could keep a node busy for ever. How often a
        server may be lost the membership says.
        """
        lapsed = False
        while True:
            try:
                return await act()
            except CloisterError as error:
                ending = await self._membership.recover(error, lapsed=lapsed)
            lapsed = ending is Ending.LAPSE
            act = go_on

    async def _receive(self) -> _Model:
        """Asks for the current model; anew, where its round ends on the way."""
        while True:
            try:
                async with self._membership.line() as line:
                    model = self._accept(await line.receive(), line)
            except ProtocolError as error:
                if error.code != _SUPERSEDED:
                    raise
                self._log.info("model-superseded")
                continue
            if model is not None:
                return model

    def _accept(self, header: ModelHeader, line: Line) -> _Model | None:
        """Returns a model that may be worked on.

        None if this node was admitted by a newer server while the call was open: the
        former one is not listened to any more.
        """
        if not self._membership.is_current(line):
            return None
        header = self._watch.check(header, line.server)
        return _Model(header=header, server=line.server.node)

    async def _contribute(self, update: UpdateHeader, model: _Model) -> _Model:
        following = None
        try:
            async with self._membership.line() as line:
                # A renewal may have met another server, which has another model.
                if line.server.node == model.server:
                    header = await line.contribute(
                        update, self._trainer.out, at_once=model.header.at_once
                    )
                    following = self._accept(header, line)
        except ProtocolError as error:
            if error.code != _SUPERSEDED:
                raise
        # Where the update counted, only the model that came for it is of the past.
        return following or await self._receive()

    async def _resume(self, update: UpdateHeader, model: _Model) -> _Model:
        """Goes on where a call was ended; nothing tells whether the update counted.

        The server's current model tells: in a round in which this party was counted it
        gives none before the next one. Another server has no use for the update.

        Args:
            update: The update that was sent.
            model: The model that it was computed from.
        """
        current = await self._receive()
        if current.server != model.server or current.header.round != update.round:
            return current
        return await self._contribute(update, current)

    async def _finish(self, report: FinalReport, model: _Model) -> _Model | None:
        """Brings the report; returns another server's model, if there is another."""
        async with self._membership.line() as line:
            if line.server.node == model.server:
                await line.finish(report)
                return None
        return await self._receive()


def _check_order(header: ModelHeader, *, after: int, plan: Plan) -> None:
    """Checks that the round of a server's next model can be this node's next one.

    Where the plan lets rounds go on without some workers, it is any later one.
    """
    every = plan.rounds.quorum == "all" and plan.rounds.sample is None
    if header.round == after + 1 or (header.round > after and not every):
        return
    raise ProtocolError(
        "the server skipped a round" if header.round > after else "a round comes again",
        code="round-order",
        expected=f"round {after + 1}" + ("" if every else " or later"),
        got=f"round {header.round}",
    )
