"""A host starts two servers from one state, and gives each some of the workers.

The server's custodian counts its nodes; each worker's remembers the newest that it met.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from pathlib import Path

import pytest
from tests.support.custodians import Custodians, Office
from tests.support.federation_in_memory import Federation
from tests.support.open_server import OpenServer, admitted_channel, open_server
from tests.support.running import Run, until
from tests.support.training_calls import begin_round, model_in, receive
from tests.support.unwarranted import unwarranted
from tests.support.whole_run import Hooked, Scene, make_scene, sources, task

from cloister.custody.client import CustodianLine
from cloister.errors import CloisterError, RefusedByPeer, VerificationError
from cloister.federation import state
from cloister.ratls.enrolling import enrol
from cloister.ratls.epochs import key_digest
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node

LOG = ["logs/aggregator.jsonl"]


@pytest.fixture
def custodians(federation: Federation, tmp_path: Path) -> Custodians:
    return Custodians(
        federation=federation, directory=tmp_path / "custody", plan=federation.plan
    )


def servers_in(custodians: Custodians) -> list[tuple[int, bytes]]:
    """Returns every server that the server's party warranted: its epoch and key."""
    with custodians.register("aggregator") as register:
        return [(row.epoch, row.tls_key) for row in register.warrants()]


async def error_of(node: Awaitable[object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        await node
    return caught.value


async def deposit_what_is_sent(
    port: OpenServer, node: Node, line: CustodianLine
) -> Mark:
    """Receives a model as a worker does, and deposits its mark."""
    async with admitted_channel(port, node) as channel:
        header, _ = model_in([message async for message in receive(port, channel)])
    assert header.state is not None
    [server] = [port.node]
    mark = Mark(
        round=header.round - 1,
        state=header.state,
        server_epoch=server.warrant.current.terms.epoch,
        server_key=key_digest(server.identity.tls_spki),
    )
    await line.deposit(mark)
    return mark


@pytest.mark.parametrize(("one", "other"), [("alice", "bob"), ("bob", "alice")])
def test_a_worker_that_met_the_newer_server_refuses_the_older_after_a_restart_too(
    run: Run,
    federation: Federation,
    custodians: Custodians,
    tmp_path: Path,
    one: str,
    other: str,
) -> None:
    async def story() -> None:
        old, _ = unwarranted(federation, "aggregator")
        new, _ = unwarranted(federation, "aggregator")
        async with (
            custodians.office("aggregator") as office,
            office.line(old) as old_line,
            office.line(new),
            custodians.office(one) as own,
            open_server(old, tmp_path / "old") as older,
            open_server(new, tmp_path / "new") as newer,
        ):
            await _meet_the_newer(federation, own, newer, older, one, other)
            again, quotes = unwarranted(federation, one)
            async with own.line(again):
                made = quotes.quotes
                error = await error_of(enrol(again, older.enrolment))
                assert isinstance(error, VerificationError)
                assert error.code == "epoch-old"
                # It showed the older server no evidence.
                assert quotes.quotes == made
                await enrol(again, newer.enrolment)

            # The older server has nobody, and its custodian nothing more for it.
            assert older.admitted() == []
            assert set(older.refusals()) == {"epoch-old"}
            assert older.coordinator.traffic.sent == 0
            mark = Mark(
                round=0,
                state=bytes(32),
                server_epoch=1,
                server_key=key_digest(old.identity.tls_spki),
            )
            error = await error_of(old_line.deposit(mark))
            assert error.code == "warrant-superseded"
            assert older.files() == newer.files() == LOG
        assert servers_in(custodians) == [
            (1, old.identity.tls_spki),
            (2, new.identity.tls_spki),
        ]
        known = custodians.mark(one)
        assert known is not None
        assert known.server_key == key_digest(new.identity.tls_spki)
        assert custodians.mark("aggregator") is None

    run(story())


async def _meet_the_newer(
    federation: Federation,
    own: Office,
    newer: OpenServer,
    older: OpenServer,
    one: str,
    other: str,
) -> None:
    """Has a worker train at the newer server, and refuse the older while it lives."""
    node, _ = unwarranted(federation, one)
    async with (
        own.line(node) as line,
        admitted_channel(newer, node) as channel,
        admitted_channel(newer, federation.node(other)) as others,
    ):
        await begin_round(newer, channel, others)
        await deposit_what_is_sent(newer, node, line)
        assert (await error_of(enrol(node, older.enrolment))).code == "epoch-old"


def test_two_servers_with_half_of_the_workers_each_train_nothing(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    one = make_scene(tmp_path / "one", federation, patience_seconds=0.4)
    two = Scene(
        directory=tmp_path / "two",
        enrolment=(apart := make_scene(tmp_path / "two", federation)).enrolment,
        training=apart.training,
        custodians=one.custodians,
        patience_seconds=0.4,
    )

    async def story() -> None:
        servers = [one.node("aggregator") for _ in range(2)]
        async with (
            one.custodians.office("aggregator") as office,
            office.line(servers[0]) as first,
            office.line(servers[1]) as second,
        ):
            ends = await asyncio.gather(
                error_of(one.serve(servers[0], task(), custodian=first)),
                error_of(two.serve(servers[1], task(), custodian=second)),
                error_of(one.work(one.node("alice"), task(), sources()["alice"])),
                error_of(two.work(two.node("bob"), task(), sources()["bob"])),
            )
        # The older one was refused before it listened; the newer one lacks a worker.
        assert [error.code for error in ends] == [
            "warrant-superseded",
            "worker-missing",
            "server-unreachable",
            "worker-missing",
        ]
        assert servers_in(one.custodians) == [
            (epoch, node.identity.tls_spki) for epoch, node in enumerate(servers, 1)
        ]

    run(story())
    for scene, party in ((one, "alice"), (two, "bob")):
        assert scene.files() == [
            "audit.jsonl",
            "logs/aggregator.jsonl",
            f"logs/{party}.jsonl",
        ]
        assert scene.events(party, "round") == []
        assert scene.custodians.mark(party) is None
    known = one.custodians.mark("aggregator")
    assert known is not None
    assert (known.round, known.server_epoch) == (0, 2)


def test_the_older_of_two_servers_stops_at_its_next_mark_with_all_its_workers(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    federation: Federation,
    tmp_path: Path,
) -> None:
    """Both have the state before the first round; the older has both workers."""
    monkeypatch.setattr(state, "MARK_SECONDS", 0.0)  # a mark with every model
    scene = make_scene(tmp_path / "run", federation)
    held, holding = threading.Event(), threading.Event()

    def hold() -> None:
        holding.set()
        assert held.wait(10)

    async def story() -> None:
        nodes = scene.nodes()
        newer = scene.node("aggregator")
        async with (
            scene.custodians.office("aggregator") as office,
            office.line(nodes["aggregator"]) as line,
        ):
            ends = [
                asyncio.ensure_future(error_of(work))
                for work in (
                    scene.serve(nodes["aggregator"], task(), custodian=line),
                    scene.work(nodes["alice"], Hooked({1: hold}), sources()["alice"]),
                    scene.work(nodes["bob"], task(), sources()["bob"]),
                )
            ]
            await until(holding.is_set)
            await until(
                lambda: office.register.mark(federation.plan.run_id) is not None
            )
            async with office.line(newer), open_server(newer, tmp_path / "new") as port:
                held.set()
                for error in await asyncio.gather(*ends):
                    assert isinstance(error, RefusedByPeer)
                    assert error.code == "warrant-superseded"
                assert port.admitted() == []
                assert port.refusals() == []
        assert servers_in(scene.custodians) == [
            (1, nodes["aggregator"].identity.tls_spki),
            (2, newer.identity.tls_spki),
        ]
        # What the party knows is what it knew when the newer one came.
        known = scene.custodians.mark("aggregator")
        assert known is not None
        assert (known.round, known.server_epoch) == (0, 1)

    try:
        run(story())
    finally:
        held.set()
    [line] = scene.events("aggregator", "failed")
    assert line["code"] == "warrant-superseded"
    assert not scene.model_path.exists()
