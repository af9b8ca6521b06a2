"""What a custodian once released, brought to somebody else, later, or altered.

The blob is what the host carries between a custodian and its node. Ports, registers,
keyrings and logs are real; each story ends with what they hold.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.support.custodian_on_disk import CustodianOnDisk
from tests.support.custodian_port import custodian_line
from tests.support.custodians import text_of
from tests.support.custody_calls import fresh_node, released_in, warranted_in
from tests.support.custody_keys import KeyedFederation, make_keyed
from tests.support.custody_safes import (
    check_no_key_in,
    check_no_key_on_disk,
    kinds_recorded,
    office_of,
)
from tests.support.enrolment_port import raw_call
from tests.support.federation_in_memory import START
from tests.support.recorded_log import RecordedLog
from tests.support.relay import always, relay
from tests.support.running import Run
from tests.support.turned_custodian import Turned, turned_port

from cloister.custody.custodian import Custodian
from cloister.custody.messages import KeysReleased
from cloister.custody.service import METHOD
from cloister.custody.share_line import fetch_share
from cloister.errors import CloisterError, VerificationError
from cloister.plan.consent import sign_consent
from cloister.plan.digest import format_digest
from cloister.plan.plan import Plan, Predecessor, plan_hash
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node

MAX_BYTES_TO_FLIP = 1024


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Data keys of alice and bob, and shares of alice and the server's party."""
    return make_keyed(tmp_path_factory.mktemp("keyed"))


async def record(
    keyed: KeyedFederation, node: Node, office: CustodianOnDisk
) -> KeysReleased:
    """Returns alice's share as it was released to a node, which opens it."""
    async with raw_call(office.address, METHOD) as call:
        meeting = await warranted_in(call, node, office.address)
        blob = await released_in(call, "state-share")
    opened = meeting.open(blob, kinds=("state-share",))
    assert opened["state-share"] == keyed.secrets["alice", "state-share"]
    return blob


async def asked_of_own(node: Node, turned: Turned) -> CloisterError:
    """Returns why a node does not take what a custodian of its party gives."""
    log = RecordedLog()
    async with custodian_line(node, turned.address, log=log) as line:
        await line.first_warrant(patience_seconds=0)
        with pytest.raises(VerificationError) as caught:
            await line.keys(("state-share",), patience_seconds=60)
        # The session is over: nothing that was said in it is waited for.
        assert line._session is None
    assert [event["event"] for event in log.events] == ["warranted"]
    return caught.value


def amended(plan: Plan) -> Plan:
    before = Predecessor(
        plan=format_digest(plan_hash(plan)), state=format_digest(b"s" * 32), round=3
    )
    rounds = plan.training.rounds + 2
    training = msgspec.structs.replace(plan.training, rounds=rounds)
    return msgspec.structs.replace(plan, predecessor=before, training=training)


def adopt(custodian: Custodian, plan: Plan) -> None:
    consent = sign_consent(plan, party=custodian.party, key=custodian.key, at=START)
    custodian.register.adopt(text_of(plan), consent, at=START)


def with_the_same_encryption_key(keyed: KeyedFederation, old: Node) -> Node:
    """Returns what no honest node is: the next one, with a key of the one before."""
    identity = replace(new_identity(), encryption_key=old.identity.encryption_key)
    return replace(fresh_node(keyed, old.party), identity=identity)


@pytest.mark.parametrize(
    "to", ["itself later", "another node", "its next epoch", "an amended plan"]
)
def test_a_blob_is_replayed_by_a_custodian_that_was_taken_over(
    run: Run, keyed: KeyedFederation, tmp_path: Path, to: str
) -> None:
    async def story() -> None:
        node = fresh_node(keyed, "alice")
        async with office_of(keyed, "alice", tmp_path) as office:
            blob = await record(keyed, node, office)
            victim = node
            if to == "another node":
                victim = fresh_node(keyed, "alice")
            elif to == "its next epoch":
                victim = with_the_same_encryption_key(keyed, node)
            elif to == "an amended plan":
                plan = amended(keyed.plan)
                adopt(office.custodian, plan)
                victim = with_the_same_encryption_key(keyed, node)
                victim = replace(victim, plan=plan, plan_hash=plan_hash(plan))
            async with turned_port(office.custodian, lambda *_: blob.sealed) as turned:
                error = await asked_of_own(victim, turned)
            assert error.code == "released-keys"
            # It told the custodian no more than that it leaves.
            assert turned.heard() == ["released-keys"]
            check_no_key_in(f"{error}{turned.log.text()}", keyed.secrets.values())
            assert kinds_recorded(office.custodian).count("key-released") == 1
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())


def test_a_blob_is_replayed_by_the_custodian_of_another_party(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """To the very node that it was for, which asks the server's party for a share."""

    async def story() -> None:
        node = fresh_node(keyed, "alice")
        async with (
            office_of(keyed, "alice", tmp_path) as own,
            office_of(keyed, "aggregator", tmp_path) as other,
        ):
            blob = await record(keyed, node, own)
            async with turned_port(other.custodian, lambda *_: blob.sealed) as turned:
                with pytest.raises(VerificationError) as caught:
                    await fetch_share(
                        node,
                        turned.address,
                        party="aggregator",
                        patience_seconds=0,
                        log=RecordedLog().logger(),
                    )
            assert caught.value.code == "released-keys"
            assert turned.heard() == ["released-keys"]
            assert "key-released" not in kinds_recorded(other.custodian)
            assert kinds_recorded(own.custodian).count("key-released") == 1
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())


def test_no_bit_of_a_blob_can_be_changed_on_its_way(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        node = fresh_node(keyed, "alice")
        async with office_of(keyed, "alice", tmp_path) as office:
            async with raw_call(office.address, METHOD) as call:
                meeting = await warranted_in(call, node, office.address)
                blob = await released_in(call, "data", "state-share")
            sealed = blob.sealed
            assert len(sealed) < MAX_BYTES_TO_FLIP
            for bit in range(8 * len(sealed)):
                other = bytearray(sealed)
                other[bit // 8] ^= 1 << bit % 8
                changed = KeysReleased(sealed=bytes(other))
                with pytest.raises(VerificationError) as caught:
                    meeting.open(changed, kinds=("data", "state-share"))
                assert caught.value.code == "released-keys"
            for cut in (sealed[:-1], sealed[1:], sealed + b"\0", sealed + sealed, b""):
                with pytest.raises(VerificationError):
                    meeting.open(
                        KeysReleased(sealed=cut), kinds=("data", "state-share")
                    )
            # Nor does half of what was asked for pass for all of it, or the reverse.
            with pytest.raises(VerificationError):
                meeting.open(blob, kinds=("data",))
            opened = meeting.open(blob, kinds=("data", "state-share"))
            assert opened["data"] == keyed.secrets["alice", "data"]
            check_no_key_in(sealed, keyed.secrets.values())
            check_no_key_in(repr(opened), keyed.secrets.values())
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())


def test_a_whole_connection_is_recorded_and_sent_again(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """All that a host sees of a release, and all that it can do with it."""

    async def story() -> None:
        node = fresh_node(keyed, "alice")
        async with office_of(keyed, "alice", tmp_path) as office:
            async with relay(always(office.address)) as tap:
                async with custodian_line(node, tap.address) as line:
                    await line.first_warrant(patience_seconds=0)
                    keys = await line.keys(("data",), patience_seconds=0)
                assert keys["data"] == keyed.secrets["alice", "data"]
            before = kinds_recorded(office.custodian)
            check_no_key_in(tap.heard, keyed.secrets.values())
            # Names of keys are no secret, but nobody on the way reads them either.
            assert str(keyed.plan.find_party("alice").data_key).encode() not in (
                tap.heard
            )
            for passage in tap.passages:
                reader, writer = await asyncio.open_connection(
                    office.address.host, office.address.port
                )
                writer.write(bytes(passage.up))
                writer.write_eof()
                answer = await asyncio.wait_for(reader.read(), 5)
                writer.transport.abort()
                check_no_key_in(answer, keyed.secrets.values())
            assert kinds_recorded(office.custodian) == before
            assert len(office.events("keys-released")) == 1
            assert [row.epoch for row in office.warrants()] == [1]
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())
