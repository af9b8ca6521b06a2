"""Hosts whose clocks are far behind or ahead, and peers who would push them there.

A clock that is wrong stops its own node and no other. Only its own host, and its own
party's custodian, can make a node believe that it is late.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.custodian_on_disk import (
    ask_for_warrant,
    custodian_on_disk,
    unwarranted,
)
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import (
    START,
    Federation,
    HandClock,
    quoting,
    rewarranted,
)
from tests.support.host_clocks import Host, at_host, custodian_at, host_at
from tests.support.hostile_platforms import CountingPlatform
from tests.support.open_server import open_server
from tests.support.places import place_of
from tests.support.recorded_log import RecordedLog, read_events
from tests.support.running import Run

from cloister.cli import nodes
from cloister.cli.journal import open_journal
from cloister.cli.nodes import build_node, open_line
from cloister.custody.custodian import Custodian
from cloister.errors import RefusedByPeer, VerificationError
from cloister.plan.consent import consents_directory, sign_consent, write_consent
from cloister.ratls.enrolling import enrol
from cloister.ratls.node import Node

DAY = timedelta(days=1)
YEAR = 365 * DAY
MINUTE = timedelta(minutes=1)


@pytest.fixture
def custodian(federation: Federation, tmp_path: Path) -> Iterator[Custodian]:
    """Alice's."""
    with custodian_of(federation, "alice", tmp_path / "registers") as custodian:
        yield custodian


# Behind


@pytest.mark.parametrize("behind", [11 * MINUTE, 5 * YEAR])
def test_a_node_whose_host_is_behind_the_consents_does_not_start(
    run: Run,
    federation: Federation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    behind: timedelta,
) -> None:
    """Which is also what a party meets that dates its consent ahead: all stop."""
    monkeypatch.setattr(nodes, "utc_now", HandClock(START - behind))
    place = place_of(federation.plan, tmp_path)
    directory = consents_directory(place.plan_path, federation.plan)
    for party, key in federation.keys.items():
        consent = sign_consent(federation.plan, party=party, key=key, at=START)
        write_consent(consent, directory)

    async def start() -> None:
        with open_journal(tmp_path / "run", party="alice", as_json=False) as log:
            await build_node(place, log=log)

    with pytest.raises(VerificationError) as caught:
        run(start())
    assert caught.value.code == "consent-future"
    assert "clock" in caught.value.remedy
    # Nothing was measured, and nobody was asked.
    assert read_events(tmp_path / "run" / "logs" / "alice.jsonl") == []


def test_a_host_behind_its_custodians_start_gets_its_node_nothing(
    run: Run, federation: Federation, custodian: Custodian, tmp_path: Path
) -> None:
    """Its consents are older; the certificate of the custodian is of its future."""
    own = CountingPlatform(federation.platform("alice"))
    alice = at_host(quoting(federation.node("alice"), own), host_at(-20 * DAY))

    async def story() -> None:
        async with custodian_on_disk(custodian, tmp_path) as office:
            with pytest.raises(VerificationError) as caught:
                await ask_for_warrant(unwarranted(alice), office)
            assert not isinstance(caught.value, RefusedByPeer)
            assert caught.value.code == "custodian-certificate-not-yet-valid"
            assert own.quotes == 0
            assert office.warrants() == ()
            assert [it["event"] for it in office.events()] == ["custodian-listening"]

    run(story())


def test_a_host_behind_a_custodian_that_was_there_before_is_put_right(
    run: Run, federation: Federation, custodian: Custodian, tmp_path: Path
) -> None:
    others = host_at(-20 * DAY)
    frozen = host_at(-20 * DAY)
    alice = unwarranted(at_host(federation.node("alice"), frozen))
    log = RecordedLog()

    async def story() -> None:
        async with custodian_on_disk(
            custodian_at(custodian, others), tmp_path
        ) as office:
            others.set(START)
            place = place_of(federation.plan, tmp_path, custodian=str(office.address))
            line = await open_line(alice, place, log=log.logger())
            await line.close()
            assert alice.clock() == START
            [warning] = log.named("clock-behind")
            assert warning["seconds"] == 20 * 24 * 3600
            [row] = office.warrants()
            assert row.issued_at == int(START.timestamp())
        async with open_server(federation.node("aggregator"), tmp_path) as port:
            await enrol(alice, port.enrolment)
            assert port.admitted() == [("alice", 1)]
            assert port.refusals() == []

    run(story())


# Ahead


def test_a_worker_whose_host_is_ahead_stops_and_the_others_go_on(
    run: Run, federation: Federation, custodian: Custodian, tmp_path: Path
) -> None:
    """A day, and every warrant has expired before it came."""
    alice = unwarranted(at_host(federation.node("alice"), host_at(DAY)))
    bob = federation.node("bob")

    async def story() -> None:
        async with (
            custodian_on_disk(custodian, tmp_path) as office,
            open_server(federation.node("aggregator"), tmp_path) as port,
        ):
            with pytest.raises(VerificationError) as caught:
                await ask_for_warrant(alice, office)
            assert not isinstance(caught.value, RefusedByPeer)
            assert caught.value.code == "warrant-expired"
            # Nobody's clock but its own is wrong, and its party's memory is as it was.
            assert custodian.appraiser.clock() == START
            [row] = office.warrants()
            assert row.epoch == 1

            await enrol(bob, port.enrolment)
            assert port.admitted() == [("bob", 1)]
            assert port.refusals() == []

    run(story())


def test_a_server_whose_host_is_ahead_admits_nobody_and_makes_nobody_late(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    host = Host()
    server = at_host(federation.node("aggregator"), host)
    workers = [federation.node("alice"), federation.node("bob")]

    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            host.set(START + 2 * DAY)
            for worker in workers:
                with pytest.raises(RefusedByPeer) as caught:
                    await enrol(worker, port.enrolment)
                assert caught.value.code == "warrant-expired"
                assert worker.clock() == START
            assert port.admitted() == []
            assert port.refusals() == 2 * ["warrant-expired"]

    run(story())


# Pushed


def dated(federation: Federation, node: Node, ahead: timedelta) -> Node:
    """Returns the node with a warrant that its own party dated ahead."""
    issued = START + ahead
    return rewarranted(
        federation,
        node,
        issued_at=int(issued.timestamp()),
        expires_at=int((issued + DAY).timestamp()),
    )


def test_a_workers_warrant_dated_far_ahead_is_refused_and_moves_no_clock(
    run: Run, federation: Federation, server: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            for ahead in (11 * MINUTE, YEAR):
                pushing = dated(federation, federation.node("alice"), ahead)
                with pytest.raises(RefusedByPeer) as caught:
                    await enrol(pushing, port.enrolment)
                assert caught.value.code == "warrant-expired"
            assert server.clock() == START
            await enrol(federation.node("bob"), port.enrolment)
            assert port.admitted() == [("bob", 1)]
            assert port.refusals() == 2 * ["warrant-expired"]

    run(story())


def test_a_warrant_within_the_tolerance_is_accepted_and_moves_no_clock_either(
    run: Run, federation: Federation, server: Node, tmp_path: Path
) -> None:
    """Ten minutes each time would be a day after enough times."""
    ahead = dated(federation, server, 10 * MINUTE)
    alice, bob = federation.node("alice"), federation.node("bob")

    async def story() -> None:
        async with open_server(ahead, tmp_path) as port:
            for _ in range(3):
                pushing = dated(federation, alice, 10 * MINUTE)
                await enrol(replace(pushing, identity=alice.identity), port.enrolment)
            await enrol(bob, port.enrolment)
            assert [it.clock() for it in (ahead, alice, bob)] == 3 * [START]
            assert port.admitted() == [("alice", 1), ("bob", 1)]
            assert port.refusals() == []

    run(story())


def test_a_server_whose_warrant_is_dated_far_ahead_gets_no_evidence(
    run: Run, federation: Federation, server: Node, tmp_path: Path
) -> None:
    own = CountingPlatform(federation.platform("alice"))
    alice = quoting(federation.node("alice"), own)

    async def story() -> None:
        async with open_server(dated(federation, server, YEAR), tmp_path) as port:
            with pytest.raises(VerificationError) as caught:
                await enrol(alice, port.enrolment)
            assert caught.value.code == "warrant-expired"
            assert alice.clock() == START
            assert own.quotes == 0
            assert port.admitted() == []
            assert port.refusals() == ["warrant-expired"]

    run(story())
