"""A host sets its clock back, or stops it, so that what has ended is in force again.

Time belongs to the host; but it is never before the newest signed time that a node has
verified, and never goes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import msgspec
import pytest
from tests.support.bad_collateral import judging_by, write_collateral
from tests.support.custodian_on_disk import (
    ask_for_warrant,
    custodian_on_disk,
)
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import (
    START,
    WARRANT_LIFE,
    Federation,
    make_federation,
    quoting,
    rewarranted,
)
from tests.support.host_clocks import Host, at_host, custodian_at, host_at
from tests.support.hostile_platforms import CountingPlatform
from tests.support.open_server import OpenServer, admitted_channel, open_server
from tests.support.plan_tree import put
from tests.support.running import Run, until
from tests.support.training_calls import (
    begin_round,
    contribute,
    model_of,
    receive,
    refused,
    send,
    update_for,
)

from cloister.attestation.platforms.simulated.collateral import SimulatedCollateral
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.reports import Tee
from cloister.custody.custodian import Custodian
from cloister.errors import RefusedByPeer, VerificationError
from cloister.ratls.enrolling import enrol
from cloister.ratls.node import Node

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def ended_ten_days_ago(root: SimulatedRoot, tee: Tee) -> str:
    """Collateral lasts 30 days."""
    collateral = SimulatedCollateral(tee=tee, at=START - 40 * DAY)
    return msgspec.json.encode(collateral.signed_by(root)).decode()


@pytest.fixture
def alices_custodian(federation: Federation, tmp_path: Path) -> Iterator[Custodian]:
    with custodian_of(federation, "alice", tmp_path / "registers") as custodian:
        yield custodian


@pytest.mark.parametrize("met_its_custodian", [False, True])
def test_collateral_that_expired_by_the_custodians_time_stays_expired(
    run: Run,
    federation: Federation,
    alices_custodian: Custodian,
    tmp_path: Path,
    met_its_custodian: bool,  # noqa: FBT001 - a parameter of the story
) -> None:
    """The host has only old collateral, and a clock at which it is good.

    Without a word from outside it would do: the first of the two stories shows what the
    second one is about.
    """
    own = CountingPlatform(federation.platform("alice"))
    host = host_at(-15 * DAY)
    old = write_collateral(federation, tmp_path / "old", ended_ten_days_ago)
    alice = quoting(federation.node("alice"), own)
    alice = at_host(replace(alice, appraiser=judging_by(alice.appraiser, old)), host)
    # It was started before the host's clock, so TLS has nothing against it.
    others = host_at(-15 * DAY)

    async def story() -> None:
        custodian = custodian_at(alices_custodian, others)
        server = federation.node("aggregator")
        async with (
            custodian_on_disk(custodian, tmp_path) as office,
            open_server(server, tmp_path) as port,
        ):
            others.set(START)
            if not met_its_custodian:
                alice.appraiser.verify(
                    own.quote(bytes(64)), expected_report_data=bytes(64)
                )
                return
            await ask_for_warrant(alice, office)
            assert alice.clock() == START
            quotes = own.quotes
            with pytest.raises(VerificationError) as caught:
                await enrol(alice, port.enrolment)
            assert caught.value.code == "crl-expired"
            assert own.quotes == quotes
            assert port.admitted() == []
            assert port.refusals() == ["crl-expired"]
            await enrol(federation.node("bob"), port.enrolment)
            assert port.admitted() == [("bob", 1)]

    run(story())


def test_a_warrant_that_expired_stays_expired_for_a_server_that_was_set_back(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    """Alice's party took its consent back, and its last warrant ended an hour ago."""
    host = Host()
    server = at_host(federation.node("aggregator"), host)
    issued = START - WARRANT_LIFE - timedelta(hours=1)
    late = rewarranted(
        federation,
        federation.node("alice"),
        issued_at=int(issued.timestamp()),
        expires_at=int((issued + WARRANT_LIFE).timestamp()),
    )

    async def story() -> None:
        with custodian_of(federation, "aggregator", tmp_path / "custody") as custodian:
            async with custodian_on_disk(custodian, tmp_path) as office:
                await ask_for_warrant(server, office)
        host.set(START - 2 * timedelta(hours=1))
        async with open_server(server, tmp_path) as port:
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(late, port.enrolment)
            assert caught.value.code == "warrant-expired"
            assert port.admitted() == []
            assert port.refusals() == ["warrant-expired"]
            await enrol(federation.node("bob"), port.enrolment)
            assert port.admitted() == [("bob", 1)]

    run(story())


async def assert_out(port: OpenServer, node: Node, channel: grpc.aio.Channel) -> None:
    assert await refused(receive(port, channel)) == "admission-lapsed"
    assert port.refusals() == ["admission-lapsed"]
    assert port.coordinator.traffic.sent == 0
    assert port.events("peer-admitted")[0]["peer"] == node.party


def test_an_admission_that_lapsed_stays_lapsed_when_the_clock_is_set_back(
    run: Run, federation: Federation, alice: Node, tmp_path: Path
) -> None:
    host = Host()
    life = timedelta(seconds=federation.plan.admission.life_seconds)

    async def story() -> None:
        server = at_host(federation.node("aggregator"), host)
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
        ):
            host.set(START + life)
            server.clock()  # as any call of anybody has it looked at
            host.set(START - DAY)
            await assert_out(port, alice, channel)

    run(story())


def test_an_admission_lapses_though_the_clock_was_stopped(
    run: Run, federation: Federation, alice: Node, tmp_path: Path
) -> None:
    """The server counts the seconds from its custodian's word on."""
    host = Host()
    life = timedelta(seconds=federation.plan.admission.life_seconds)

    async def story() -> None:
        server = at_host(federation.node("aggregator"), host)
        with custodian_of(federation, "aggregator", tmp_path / "custody") as custodian:
            async with custodian_on_disk(custodian, tmp_path) as office:
                await ask_for_warrant(server, office)
        async with (
            open_server(server, tmp_path) as port,
            admitted_channel(port, alice) as channel,
        ):
            host.passed = life / timedelta(seconds=1)
            await assert_out(port, alice, channel)

    run(story())


def test_an_admission_lapses_by_rounds_where_all_time_stands_still(
    run: Run, tmp_path: Path
) -> None:
    """Even a host that keeps the counter from rising cannot keep a node in for ever."""
    federation = make_federation(
        tmp_path / "federation",
        change=lambda tree: put(tree, ("admission",), {"rounds": 1}),
    )
    server, alice, bob = map(federation.node, ("aggregator", "alice", "bob"))

    async def story() -> None:
        async with (
            open_server(server, tmp_path / "run") as port,
            admitted_channel(port, alice) as channel,
            admitted_channel(port, bob) as other,
        ):
            await begin_round(port, channel, other)
            for node, each in ((alice, channel), (bob, other)):
                call = contribute(each)
                await send(call, update_for(port, node))
                await call.done_writing()
            await until(lambda: port.ports.table.round == 2)
            assert server.clock() == START
            assert await refused(receive(port, channel)) == "admission-lapsed"
            await enrol(bob, port.enrolment)
            async with admitted_channel(port, bob) as renewed:
                assert await model_of(receive(port, renewed))
            assert "admission-lapsed" in port.refusals()

    run(story())
