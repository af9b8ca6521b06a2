"""Genuine warrants, signed by genuine custodians, shown where they do not count."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.support.custodians import Custodians, text_of
from tests.support.federation_in_memory import (
    START,
    Federation,
    HandClock,
    quoting,
    warranted,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.open_server import OpenServer, open_server
from tests.support.registers import content_of
from tests.support.running import Run
from tests.support.unwarranted import unwarranted

from cloister.errors import RefusedByPeer
from cloister.plan.consent import sign_consent
from cloister.plan.plan import Plan, plan_hash
from cloister.ratls.enrolling import enrol
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.warrant import HeldWarrant

LOG = ["logs/aggregator.jsonl"]
MARK = Mark(round=3, state=b"s" * 32, server_epoch=1, server_key=b"k" * 32)


@pytest.fixture
def custodians(federation: Federation, clock: HandClock, tmp_path: Path) -> Custodians:
    return Custodians(
        federation=federation,
        directory=tmp_path / "custody",
        plan=federation.plan,
        clock=clock,
    )


async def refusal_at(port: OpenServer, node: Node) -> str:
    """Returns why a server refuses a node; it hears no more than the code."""
    with pytest.raises(RefusedByPeer) as caught:
        await enrol(node, port.enrolment)
    assert (caught.value.expected, caught.value.got) == ("", "")
    return caught.value.code


def test_the_warrant_of_a_former_node_does_not_bring_it_back(
    run: Run,
    federation: Federation,
    server: Node,
    custodians: Custodians,
    tmp_path: Path,
) -> None:
    """It is in force for hours yet, and its node runs; a newer one was met."""

    async def story() -> None:
        former, _ = unwarranted(federation, "alice")
        newer, _ = unwarranted(federation, "alice")
        counting = CountingPlatform(server.platform)
        async with (
            open_server(quoting(server, counting), tmp_path / "run") as port,
            custodians.office("alice") as office,
            office.line(former) as line,
        ):
            await enrol(former, port.enrolment)
            async with office.line(newer):
                await enrol(newer, port.enrolment)
            made = counting.quotes
            assert await refusal_at(port, former) == "epoch-old"
            assert counting.quotes == made
            # Nor does its custodian renew it.
            with pytest.raises(RefusedByPeer) as caught:
                await line.renew()
            assert caught.value.code == "warrant-superseded"
            [peer] = port.ports.table.parties()
            assert (peer.epoch, peer.tls_key) == (2, newer.identity.tls_spki)
            assert port.refusals() == ["epoch-old"]
            assert port.files() == LOG
        with custodians.register("alice") as register:
            assert [row.epoch for row in register.warrants()] == [1, 2]

    run(story())


def test_a_former_node_at_a_server_that_starts_anew_is_out_when_the_newer_one_comes(
    run: Run,
    federation: Federation,
    server: Node,
    custodians: Custodians,
    tmp_path: Path,
) -> None:
    """What a server's memory cannot tell: it begins empty. A custodian's does not."""

    async def story() -> None:
        former, _ = unwarranted(federation, "alice")
        newer, _ = unwarranted(federation, "alice")
        async with (
            open_server(server, tmp_path / "run") as port,
            custodians.office("alice") as office,
            office.line(former) as old_line,
            office.line(newer) as line,
        ):
            await enrol(former, port.enrolment)
            assert port.admitted() == [("alice", 1)]
            # Her custodian notices at the first mark.
            with pytest.raises(RefusedByPeer) as caught:
                await old_line.deposit(MARK)
            assert caught.value.code == "warrant-superseded"
            await enrol(newer, port.enrolment)
            assert port.admitted() == [("alice", 2)]
            assert await refusal_at(port, former) == "epoch-old"
            await line.deposit(MARK)
        assert custodians.mark("alice") == MARK

    run(story())


def other_run(federation: Federation) -> Plan:
    header = msgspec.structs.replace(federation.plan.plan, run="b")
    return msgspec.structs.replace(federation.plan, plan=header)


def test_a_warrant_for_another_run_of_the_same_parties_admits_nobody(
    run: Run,
    federation: Federation,
    server: Node,
    custodians: Custodians,
    tmp_path: Path,
) -> None:
    """One machine, one key, one custodian, two runs."""

    async def story() -> None:
        plan = other_run(federation)
        elsewhere, _ = unwarranted(federation, "alice", plan=plan)
        async with (
            open_server(server, tmp_path / "run") as port,
            custodians.office("alice") as office,
        ):
            consent = sign_consent(
                plan, party="alice", key=federation.keys["alice"], at=START
            )
            office.register.adopt(text_of(plan), consent, at=START)
            async with office.line(elsewhere):
                pass
            there = elsewhere.warrant.current
            assert there.terms.run_id == "blobs/b"
            before = content_of(office.register)
            # The node of this run has the very key that the warrant names.
            posing = warranted(_under(federation, elsewhere), there)
            assert await refusal_at(port, posing) == "warrant-foreign"
            # Under the other plan it does not even get that far.
            assert await refusal_at(port, elsewhere) == "plan-differs"
            assert port.admitted() == []
            assert port.refusals() == ["warrant-foreign", "plan-differs"]
            assert content_of(office.register) == before
            # And its own custodian gives it one for this run, as a node of its own.
            fresh = _under(federation, elsewhere)
            async with office.line(fresh):
                await enrol(fresh, port.enrolment)
            assert port.admitted() == [("alice", 1)]

    run(story())


def _under(federation: Federation, node: Node) -> Node:
    """Returns a node with its keys, under the federation's plan, without a warrant."""
    plan = federation.plan
    return replace(node, plan=plan, plan_hash=plan_hash(plan), warrant=HeldWarrant())


def test_an_old_warrant_is_not_in_force_again_when_the_host_sets_its_clock_back(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    """The server's custodian dated its warrant; time does not go back behind that."""
    morning = START - timedelta(hours=12)
    of_custodians, of_alice = HandClock(morning), HandClock(morning)
    custodians = Custodians(
        federation=federation,
        directory=tmp_path / "custody",
        plan=federation.plan,
        clock=of_custodians,
        warrant_life=timedelta(hours=1),
    )

    async def story() -> None:
        old, _ = unwarranted(federation, "alice", clock=of_alice)
        async with custodians.office("alice") as office, office.line(old):
            pass
        expires = old.warrant.current.terms.expires_at
        # The server's host says that it is morning still; it is not the only one asked.
        node, _ = unwarranted(federation, "aggregator", clock=HandClock(morning))
        async with custodians.office("aggregator") as office:
            of_custodians.forward(START - morning)
            of_alice.forward(START - morning)
            async with (
                office.line(node),
                open_server(node, tmp_path / "run") as port,
            ):
                assert await refusal_at(port, old) == "warrant-expired"
                assert node.clock() == START
                assert expires < START.timestamp()
                assert port.admitted() == []
                assert port.refusals() == ["warrant-expired"]
                assert port.files() == LOG

    run(story())
