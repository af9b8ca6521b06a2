"""Parties in a running round, each with a channel of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.open_server import OpenServer, admitted_channel, open_server
from tests.support.plan_tree import FEATURES, Tree, put
from tests.support.single_updates import messages_of, next_model
from tests.support.training_calls import (
    Contributing,
    begin_round,
    contribute,
    send_update,
)

from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import EvaluationReport, ModelHeader
from cloister.ratls.node import Node

MORE = ("carol", "dave")


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """One party that was admitted.

    Attributes:
        port: The server.
        node: Its node.
        channel: Its channel on the training port.
    """

    port: OpenServer
    node: Node
    channel: grpc.aio.Channel

    def messages(
        self,
        values: ModelBuffer,
        *,
        loss_sum: float = 1.0,
        evaluation: EvaluationReport | None = None,
    ) -> list[bytes]:
        """Returns an update of its own for the round that runs."""
        return messages_of(
            self.port, self.node, values, loss_sum=loss_sum, evaluation=evaluation
        )

    async def send(self, messages: list[bytes]) -> Contributing:
        """Sends an update as a worker does; its call then waits for a model."""
        call = contribute(self.channel)
        await send_update(call, messages)
        return call

    async def train(
        self, values: ModelBuffer, *, loss_sum: float = 1.0
    ) -> tuple[ModelHeader, bytes]:
        """Sends a good update; returns the model that answers it."""
        return await next_model(
            await self.send(self.messages(values, loss_sum=loss_sum))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A round.

    Attributes:
        port: The server.
        parties: Everybody in it, by name, in plan order.
    """

    port: OpenServer
    parties: dict[str, Party]

    def __getitem__(self, name: str) -> Party:
        return self.parties[name]


def plain(tree: Tree) -> Tree:
    """Makes a step the mean itself: model - mean is the next model."""
    put(tree, ("training", "optimizer"), {"name": "sgd", "learning_rate": 1.0})
    return put(tree, ("training", "schedule"), {"name": "constant"})


def four_of(directory: Path, change: Callable[[Tree], Tree]) -> Federation:
    """Returns alice, bob, carol and dave, whose steps are plain."""
    return make_federation(
        directory, change=lambda tree: change(plain(tree)), more_workers=MORE
    )


@asynccontextmanager
async def in_a_round(
    federation: Federation, directory: Path, *, features: int = FEATURES
) -> AsyncIterator[Scene]:
    """Opens a server in whose first round all workers of the plan are."""
    server = federation.node("aggregator")
    async with (
        open_server(server, directory, features=features) as port,
        AsyncExitStack() as channels,
    ):
        parties = {}
        for worker in federation.plan.workers:
            node = federation.node(worker.name)
            channel = await channels.enter_async_context(admitted_channel(port, node))
            parties[worker.name] = Party(port=port, node=node, channel=channel)
        await begin_round(port, *(party.channel for party in parties.values()))
        yield Scene(port=port, parties=parties)
