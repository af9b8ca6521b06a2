"""A node's way to another party's custodian, over a real port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.addresses import free_addresses
from tests.support.custodian_port import custodian_port
from tests.support.custody_keys import KeyedFederation, KeysInMemory, make_keyed
from tests.support.custody_meeting import custodian_of
from tests.support.enrolment_port import raw_call
from tests.support.federation_in_memory import START, HandClock, quoting
from tests.support.plan_tree import measurement_of
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run, until

from cloister.custody.custodian import Custodian
from cloister.custody.messages import (
    Deposit,
    KeyRequest,
    KeysReleased,
    decode_from_custodian,
)
from cloister.custody.node_share_meeting import NodeShareMeeting
from cloister.custody.register import Register
from cloister.custody.service import METHOD
from cloister.custody.share_line import fetch_share
from cloister.errors import ProtocolError, RefusedByPeer, VerificationError
from cloister.plan.consent import parse_consent
from cloister.plan.plan import plan_hash
from cloister.plan.site import Address
from cloister.ratls.challenge import Refusal, decode_message, encode_message
from cloister.ratls.epochs import key_digest
from cloister.ratls.exchange import Call
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.limits import Limits
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.storage.keys import Secret, new_key

MARK = Mark(round=1, state=b"s" * 32, server_epoch=1, server_key=b"k" * 32)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    return make_keyed(tmp_path_factory.mktemp("keyed"))


@pytest.fixture
def alice(keyed: KeyedFederation, clock: HandClock) -> Node:
    return keyed.federation.node("alice", clock=clock)


async def fetched(
    node: Node,
    address: Address,
    *,
    patience: float = 0,
    log: RecordedLog | None = None,
    limits: Limits | None = None,
) -> Secret:
    """Returns the share of the server's party."""
    return await fetch_share(
        node,
        address,
        party="aggregator",
        patience_seconds=patience,
        log=(log or RecordedLog()).logger(),
        limits=limits or Limits(),
    )


@pytest.fixture
def holder(
    keyed: KeyedFederation, clock: HandClock, tmp_path: Path
) -> Iterator[Custodian]:
    """The custodian of the server's party."""
    with custodian_of(
        keyed.federation,
        "aggregator",
        tmp_path,
        clock=clock,
        keys=keyed.stores["aggregator"],
    ) as custodian:
        yield custodian


def test_a_share_comes_and_both_sides_say_so_in_one_line(
    run: Run, keyed: KeyedFederation, holder: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with custodian_port(holder) as office:
            share = await fetched(alice, office.address)
            assert share == keyed.secrets["aggregator", "state-share"]
            # It came for one thing, and went.
            await until(lambda: office.sessions() == 0)
            key = key_digest(alice.identity.tls_spki).hex()[:16]
            [met] = office.log.named("node-met")
            assert met == {
                "event": "node-met",
                "level": "info",
                "node_party": "alice",
                "run": keyed.plan.run_id,
                "role": "worker",
                "epoch": 1,
                "key": key,
                "admit": "attested",
            }
            [released] = office.log.named("keys-released")
            assert released == {
                "event": "keys-released",
                "level": "info",
                "node_party": "alice",
                "run": keyed.plan.run_id,
                "role": "worker",
                "epoch": 1,
                "key": key,
                "kinds": ["state-share"],
                "key_ids": [keyed.plan.find_party("aggregator").state_share],
            }
            assert share.reveal().hex() not in office.log.text()
            assert office.refusals() == []

    run(story())


def test_a_node_waits_for_a_share_and_says_so_once(
    run: Run, keyed: KeyedFederation, holder: Custodian, alice: Node
) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        log = RecordedLog()
        waiting = asyncio.ensure_future(fetched(alice, address, patience=20, log=log))
        await until(lambda: log.events != [])
        async with custodian_port(holder, address=address):
            assert await waiting == keyed.secrets["aggregator", "state-share"]
        [said] = log.named("waiting-for-share")
        assert (said["code"], said["custodian"], said["share_of"]) == (
            "custodian-unreachable",
            str(address),
            "aggregator",
        )

    run(story())


def test_a_node_waits_until_the_other_party_consents_too(
    run: Run,
    keyed: KeyedFederation,
    holder: Custodian,
    alice: Node,
    clock: HandClock,
    tmp_path: Path,
) -> None:
    """People sign by hand; a node that came first need not be started again."""

    async def story() -> None:
        consent = parse_consent(holder.register.plans()[0].consent)
        text = holder.register.plans()[0].plan
        log = RecordedLog()
        with Register.create(tmp_path / "new.sqlite", party="aggregator") as register:
            async with custodian_port(replace(holder, register=register)) as office:
                waiting = asyncio.ensure_future(
                    fetched(alice, office.address, patience=20, log=log)
                )
                await until(lambda: log.events != [])
                register.adopt(text, consent, at=clock())
                assert await waiting == keyed.secrets["aggregator", "state-share"]
        [said] = log.named("waiting-for-share")
        assert (said["code"], said["share_of"]) == ("plan-not-consented", "aggregator")

    run(story())


def test_patience_with_a_party_that_does_not_consent_ends(
    run: Run, holder: Custodian, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        log = RecordedLog()
        with Register.create(tmp_path / "new.sqlite", party="aggregator") as register:
            async with custodian_port(replace(holder, register=register)) as office:
                with pytest.raises(RefusedByPeer) as caught:
                    await fetched(alice, office.address, patience=0.3, log=log)
        assert caught.value.code == "plan-not-consented"
        assert "'aggregator'" in caught.value.what
        assert len(log.named("waiting-for-share")) == 1

    run(story())


def test_a_share_that_does_not_come_is_named(run: Run, alice: Node) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        with pytest.raises(ProtocolError) as caught:
            await fetched(alice, address)
        assert caught.value.code == "custodian-unreachable"
        assert "'aggregator'" in caught.value.expected
        assert "[shares]" in caught.value.remedy

    run(story())


def test_another_partys_custodian_at_the_address_is_not_spoken_to(
    run: Run, keyed: KeyedFederation, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        with custodian_of(
            keyed.federation, "bob", tmp_path, keys=keyed.stores["bob"]
        ) as bobs:
            async with custodian_port(bobs) as office:
                with pytest.raises(VerificationError) as caught:
                    await fetched(alice, office.address, patience=60)
                assert caught.value.code == "custodian-certificate-signature"
                assert office.sessions() == 0
                assert office.refusals() == []

    run(story())


def test_a_node_of_other_code_gets_no_share_and_hears_little(
    run: Run, keyed: KeyedFederation, holder: Custodian, alice: Node
) -> None:
    async def story() -> None:
        other = measurement_of("worker", task_source=b"other")
        platform = keyed.federation.platform("alice", measurement=other)
        async with custodian_port(holder) as office:
            with pytest.raises(RefusedByPeer) as caught:
                await fetched(quoting(alice, platform), office.address, patience=60)
            assert caught.value.code == "appraisal-measurement"
            assert "'aggregator'" in caught.value.what
            assert caught.value.expected == ""
            assert office.log.named("keys-released") == []
            # Anybody could have come so far: nothing of it is recorded.
            kinds = [row.kind for row in holder.register.records()]
            assert "node-refused" not in kinds

    run(story())


def test_a_refusal_of_a_node_that_proved_itself_is_recorded(
    run: Run, keyed: KeyedFederation, holder: Custodian, clock: HandClock
) -> None:
    async def story() -> None:
        async with custodian_port(holder) as office:
            newer = keyed.federation.node("alice", clock=clock, epoch=2)
            await fetched(newer, office.address)
            older = keyed.federation.node("alice", clock=clock)
            with pytest.raises(RefusedByPeer) as caught:
                await fetched(older, office.address, patience=60)
            assert caught.value.code == "epoch-old"
            assert "epoch 2" in caught.value.expected
            await until(lambda: office.sessions() == 0)
        assert office.refusals() == ["epoch-old"]
        [record] = [r for r in holder.register.records() if r.kind == "node-refused"]
        assert b'"epoch-old"' in record.payload

    run(story())


def test_trouble_of_the_custodian_is_no_refusal_of_the_node(
    run: Run, holder: Custodian, alice: Node, clock: HandClock
) -> None:
    """Another process of it wrote a later time; the node had proved itself."""

    async def story() -> None:
        async with (
            custodian_port(holder) as office,
            raw_call(office.address, METHOD) as call,
        ):
            await met(office.address, alice, call)
            late = clock.now + timedelta(days=1)
            consent = parse_consent(holder.register.plans()[0].consent)
            text = holder.register.plans()[0].plan
            holder.register.withdraw(plan_hash(alice.plan), at=late)
            holder.register.adopt(text, consent, at=late)
            await call.write(encode_message(KeyRequest(kinds=("state-share",))))
            refusal = await reply_in(call)
            assert isinstance(refusal, Refusal)
            assert (refusal.code, refusal.trouble) == ("clock-behind", True)
        kinds = [row.kind for row in holder.register.records()]
        assert "node-refused" not in kinds
        assert "key-released" not in kinds

    run(story())


async def reply_in(call: Call) -> object:
    raw = await call.read()
    assert isinstance(raw, bytes)
    return decode_message(raw, decode_from_custodian)


async def met(address: Address, node: Node, call: Call) -> NodeShareMeeting:
    """Goes through a session until the custodian has accepted the node."""
    meeting = NodeShareMeeting(node, party="aggregator")
    meeting.pin(await fetch_unverified_certificate(address))
    await call.write(encode_message(meeting.hello()))
    await call.write(encode_message(meeting.answer(await reply_in(call))))  # type: ignore[arg-type]
    await call.write(encode_message(meeting.prove(await reply_in(call))))  # type: ignore[arg-type]
    meeting.accept(await reply_in(call))  # type: ignore[arg-type]
    return meeting


def test_another_partys_node_deposits_nothing(
    run: Run, holder: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with (
            custodian_port(holder) as office,
            raw_call(office.address, METHOD) as call,
        ):
            await met(office.address, alice, call)
            await call.write(encode_message(Deposit(mark=MARK)))
            refusal = await reply_in(call)
            assert isinstance(refusal, Refusal)
            assert (refusal.code, refusal.expected) == (
                "message-order",
                "KeyRequest",
            )
        assert holder.register.marks() == ()

    run(story())


def test_another_partys_node_cannot_take_the_own_nodes_way_in(
    run: Run, keyed: KeyedFederation, holder: Custodian, alice: Node
) -> None:
    """It answers without its warrant, as the party's own node would."""

    async def story() -> None:
        async with (
            custodian_port(holder) as office,
            raw_call(office.address, METHOD) as call,
        ):
            meeting = NodeShareMeeting(alice, party="aggregator")
            meeting.pin(await fetch_unverified_certificate(office.address))
            await call.write(encode_message(meeting.hello()))
            answer = meeting.answer(await reply_in(call))  # type: ignore[arg-type]
            bare = {"message": "possession", "signature": answer.signature}
            await call.write(encode_message(bare))
            refusal = await reply_in(call)
            assert isinstance(refusal, Refusal)
            assert (refusal.code, refusal.expected) == ("message-order", "")
        assert holder.register.warrants() == ()
        assert keyed.secrets

    run(story())


def test_another_partys_node_does_not_stay(
    run: Run, holder: Custodian, alice: Node
) -> None:
    """It would hold a place for nothing."""

    async def story() -> None:
        hurried = Limits(stranger_seconds=5, handshake_seconds=0.5)
        async with (
            custodian_port(holder, limits=hurried) as office,
            raw_call(office.address, METHOD) as call,
        ):
            meeting = await met(office.address, alice, call)
            await call.write(encode_message(meeting.request()))
            released = await reply_in(call)
            assert isinstance(released, KeysReleased)
            meeting.open(released)
            await until(lambda: office.log.named("session-timeout") != [])
            await until(lambda: office.sessions() == 0)

    run(story())


def test_a_custodian_that_gives_another_share_is_told_so(
    run: Run,
    keyed: KeyedFederation,
    alice: Node,
    clock: HandClock,
    tmp_path: Path,
) -> None:
    """The custodian checks what its store gives, so it says so itself."""

    async def story() -> None:
        name = str(keyed.plan.find_party("aggregator").state_share)
        wrong = KeysInMemory({name: new_key()})
        with custodian_of(
            keyed.federation, "aggregator", tmp_path, clock=clock, keys=wrong
        ) as holder:
            async with custodian_port(holder) as office:
                with pytest.raises(RefusedByPeer) as caught:
                    await fetched(alice, office.address, patience=60)
                assert caught.value.code == "key-differs"

    run(story())


def test_a_plan_that_was_withdrawn_gives_no_share(
    run: Run, keyed: KeyedFederation, holder: Custodian, alice: Node
) -> None:
    async def story() -> None:
        holder.register.withdraw(plan_hash(keyed.plan), at=START)
        async with custodian_port(holder) as office:
            with pytest.raises(RefusedByPeer) as caught:
                await fetched(alice, office.address, patience=60)
            assert caught.value.code == "plan-withdrawn"

    run(story())
