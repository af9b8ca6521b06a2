"""The right node asks for its keys too late: for its party, its proof or the clock.

Ports, registers, keyrings and logs are real; each story ends with what they hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.custodian_on_disk import CustodianOnDisk, custodian_on_disk
from tests.support.custodian_port import custodian_line
from tests.support.custody_calls import (
    fresh_node,
    met_in,
    refused_in,
    released_in,
    warranted_in,
)
from tests.support.custody_keys import KeyedFederation, make_keyed
from tests.support.custody_safes import (
    check_no_key_on_disk,
    keeper_of,
    kinds_recorded,
    office_of,
    refusals_recorded,
)
from tests.support.enrolment_port import raw_call
from tests.support.federation_in_memory import START, HandClock, quoting
from tests.support.hostile_platforms import CountingPlatform
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run
from typing_extensions import override

from cloister.custody.custodian import PROOF_LIFE
from cloister.custody.key_store import KeyStore, RegisterKeys
from cloister.custody.service import METHOD
from cloister.custody.share_line import fetch_share
from cloister.errors import PeerInTrouble, RefusedByPeer
from cloister.plan.plan import plan_hash
from cloister.ratls.node import Node
from cloister.storage.keys import KeyKind, Secret


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Data keys of alice and bob, and shares of alice and the server's party."""
    return make_keyed(tmp_path_factory.mktemp("keyed"))


async def share_of(
    party: str, node: Node, office: CustodianOnDisk, log: RecordedLog | None = None
) -> Secret:
    return await fetch_share(
        node,
        office.address,
        party=party,
        patience_seconds=0,
        log=(log or RecordedLog()).logger(),
    )


async def check_goes_on(keyed: KeyedFederation, office: CustodianOnDisk) -> None:
    """A new node of alice's, which asks for what is its own, has it."""
    node = fresh_node(keyed, "alice")
    async with custodian_line(node, office.address) as line:
        await line.first_warrant(patience_seconds=0)
        keys = await line.keys(("data",), patience_seconds=0)
    assert keys["data"] == keyed.secrets["alice", "data"]


# Sessions that stay open with another party's custodian


def withdraws(keyed: KeyedFederation, office: CustodianOnDisk) -> None:
    office.custodian.register.withdraw(plan_hash(keyed.plan), at=START)


@pytest.mark.parametrize("how", ["replaced", "withdrawn"])
def test_a_share_is_asked_for_in_a_session_from_before(
    run: Run, keyed: KeyedFederation, tmp_path: Path, how: str
) -> None:
    """Alice's node had met the other custodian before it was replaced; or that party
    took back its word. The node's warrant is in force, its session open.
    """

    async def story() -> None:
        old = keyed.federation.node("alice", epoch=1)
        async with office_of(keyed, "aggregator", tmp_path) as office:
            async with raw_call(office.address, METHOD) as call:
                await met_in(call, old, office.address, party="aggregator")
                if how == "withdrawn":
                    withdraws(keyed, office)
                else:
                    new = keyed.federation.node("alice", epoch=2)
                    await share_of("aggregator", new, office)
                refusal = await refused_in(call, "state-share")
            released = [it["epoch"] for it in office.events("keys-released")]
            if how == "withdrawn":
                assert (refusal.code, released) == ("plan-withdrawn", [])
            else:
                assert (refusal.code, released) == ("warrant-superseded", [2])
            [refused] = refusals_recorded(office.custodian)
            assert f'"{refusal.code}"' in refused
            recorded = kinds_recorded(office.custodian)
            assert recorded.count("key-released") == len(released)
            [known] = office.custodian.register.foreign_warrants()
            assert known.epoch == (1 if how == "withdrawn" else 2)
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowKeys(KeyStore):
    """A key manager that takes its time; much happens meanwhile."""

    store: KeyStore
    meanwhile: Callable[[], None]

    @override
    def secret(self, key_id: str, *, kind: KeyKind) -> Secret:
        found = self.store.secret(key_id, kind=kind)
        self.meanwhile()
        return found


def test_the_party_takes_its_word_back_while_the_key_is_fetched(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        with keeper_of(keyed, "alice", tmp_path) as custodian:
            slow = SlowKeys(
                store=custodian.keys,
                meanwhile=lambda: custodian.register.withdraw(
                    plan_hash(keyed.plan), at=START
                ),
            )
            slowed = replace(custodian, keys=slow)
            async with custodian_on_disk(slowed, tmp_path) as office:
                node = fresh_node(keyed, "alice")
                async with custodian_line(node, office.address) as line:
                    await line.first_warrant(patience_seconds=0)
                    with pytest.raises(RefusedByPeer) as caught:
                        await line.keys(("data",), patience_seconds=60)
                assert caught.value.code == "plan-withdrawn"
                assert office.events("keys-released") == []
            assert "key-released" not in kinds_recorded(custodian)
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())


# Too late


def clock_runs_on(clock: HandClock) -> None:
    clock.forward(PROOF_LIFE + timedelta(seconds=1))


def clock_is_stopped_and_set_back(clock: HandClock) -> None:
    clock.now = START


@pytest.mark.parametrize(
    "then", [clock_runs_on, clock_is_stopped_and_set_back], ids=lambda it: it.__name__
)
def test_keys_are_asked_for_with_a_proof_of_some_time_ago(
    run: Run, keyed: KeyedFederation, tmp_path: Path, then: Callable[[HandClock], None]
) -> None:
    """The machine was revoked meanwhile, or taken over; its session is still open."""
    clock = HandClock()

    async def story() -> None:
        counting = CountingPlatform(keyed.federation.platform("alice"))
        node = quoting(fresh_node(keyed, "alice"), counting)
        async with office_of(keyed, "alice", tmp_path, clock=clock) as office:
            async with raw_call(office.address, METHOD) as call:
                await warranted_in(call, node, office.address)
                await released_in(call, "data")
                if then is clock_is_stopped_and_set_back:
                    # Somebody else is served at a later time, before it is set back.
                    clock_runs_on(clock)
                    await share_of("alice", keyed.federation.node("bob"), office)
                then(clock)
                refusal = await refused_in(call, "data")
                assert refusal.code == "proof-old"
            kinds = [it["kinds"] for it in office.events("keys-released")]
            assert kinds.count(["data"]) == 1
            assert counting.quotes == 1
            assert '"proof-old"' in refusals_recorded(office.custodian)[0]
            # An honest node proves itself again, and has its key.
            async with custodian_line(node, office.address) as line:
                await line.first_warrant(patience_seconds=0)
                clock_runs_on(clock)
                clock_runs_on(clock)
                await line.keys(("data",), patience_seconds=0)
            assert counting.quotes == 3
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())


def test_a_custodians_clock_that_was_set_back_an_hour_releases_nothing(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """Started anew, it knows the time only from its register."""
    clock = HandClock(START)

    async def story() -> None:
        async with office_of(keyed, "alice", tmp_path, clock=clock) as office:
            await check_goes_on(keyed, office)
        clock.now = START - timedelta(hours=1)
        node = fresh_node(keyed, "alice")
        async with office_of(keyed, "alice", tmp_path, clock=clock) as office:
            async with custodian_line(node, office.address) as line:
                with pytest.raises(PeerInTrouble) as caught:
                    await line.first_warrant(patience_seconds=0)
            assert caught.value.code == "clock-behind"
            assert kinds_recorded(office.custodian).count("key-released") == 1
            assert [row.epoch for row in office.warrants()] == [1]
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())


def test_a_custodians_clock_stands_still_while_its_party_goes_on(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """For a stopped clock no proof and no warrant is ever old."""

    async def story() -> None:
        async with office_of(keyed, "alice", tmp_path) as office:
            node = fresh_node(keyed, "alice")
            async with custodian_line(node, office.address) as line:
                await line.first_warrant(patience_seconds=0)
                keys = office.custodian.keys
                assert isinstance(keys, RegisterKeys)
                keys.add("data", label="next", at=START + timedelta(minutes=11))
                with pytest.raises(PeerInTrouble) as caught:
                    await line.keys(("data",), patience_seconds=0)
                assert caught.value.code == "clock-behind"
            assert office.events("keys-released") == []
            assert "key-released" not in kinds_recorded(office.custodian)
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())
