"""Connections that are made, and then hold a place for nothing.

They cost a stranger nothing, and a process may open only so many.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.support.custodian_on_disk import custodian_on_disk, unwarranted
from tests.support.custodian_port import custodian_line
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import Federation
from tests.support.open_server import admitted_channel, open_server
from tests.support.raw_http2 import open_http2
from tests.support.registers import mark_of
from tests.support.running import Run
from tests.support.training_calls import begin_round

from cloister.ratls import channels
from cloister.ratls.node import Node

STRANGERS = 10


@pytest.fixture
def workers(alice: Node, bob: Node) -> tuple[Node, Node]:
    return alice, bob


async def closed(stranger: asyncio.StreamReader) -> None:
    """Waits until the other side has ended the connection, whatever it says before."""
    while await stranger.read(4096):
        pass


def test_they_are_closed_and_no_honest_node_is_interrupted(
    run: Run,
    federation: Federation,
    workers: tuple[Node, Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not those of an admitted worker, and not a session that waits for a round."""
    monkeypatch.setattr(channels, "STRANGER_IDLE_SECONDS", 1)
    node = unwarranted(federation.node("alice"))
    mark = mark_of(3)

    async def story() -> None:
        with custodian_of(federation, "alice", tmp_path / "registers") as custodian:
            async with AsyncExitStack() as stack:
                enter = stack.enter_async_context
                office = await enter(custodian_on_disk(custodian, tmp_path))
                port = await enter(open_server(federation.node("aggregator"), tmp_path))
                line = await enter(custodian_line(node, office.address))
                await line.first_warrant(patience_seconds=0)
                trained = [await enter(admitted_channel(port, it)) for it in workers]
                await begin_round(port, *trained)
                strangers = []
                for address in STRANGERS * (port.enrolment, office.address):
                    reader, writer = await open_http2(address)
                    stack.callback(writer.close)
                    strangers.append(reader)
                async with asyncio.timeout(20):
                    await asyncio.gather(*map(closed, strangers))

                await begin_round(port, *trained)
                await line.deposit(mark)
                # One session, which was never interrupted.
                assert len(office.events("warrant-signed")) == 1
                assert office.sessions() == 1
                assert custodian.register.mark(federation.plan.run_id) == mark
                assert port.admitted() == [("alice", 1), ("bob", 1)]
                assert port.refusals() == []
                assert office.refusals() == []

    run(story())
