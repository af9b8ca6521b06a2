"""The right node asks for the wrong thing, too often, or with a key that is no key.

Ports, registers, keyrings and logs are real; each story ends with what they hold.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.support.custodian_on_disk import CustodianOnDisk
from tests.support.custodian_port import custodian_line
from tests.support.custody_calls import (
    fresh_node,
    refused_in,
    warranted_in,
)
from tests.support.custody_keys import KeyedFederation, make_keyed
from tests.support.custody_safes import (
    check_no_key_on_disk,
    kinds_recorded,
    office_of,
    refusals_recorded,
)
from tests.support.enrolment_port import raw_call
from tests.support.federation_in_memory import START, HandClock, quoting
from tests.support.hostile_platforms import CountingPlatform
from tests.support.raw_messages import message_in, refusal_in
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run, until
from typing_extensions import override

from cloister.custody.messages import CustodianChallenge, decode_from_custodian
from cloister.custody.node_meeting import NodeMeeting
from cloister.custody.register_records import RELEASES_AN_HOUR
from cloister.custody.service import METHOD
from cloister.custody.share_line import fetch_share
from cloister.errors import RefusedByPeer
from cloister.ratls.challenge import encode_message
from cloister.ratls.identity import NodeIdentity, new_identity
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node

ORDER_8 = bytes.fromhex(
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
)
PRIME = 2**255 - 19


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Data keys of alice and bob, and shares of alice and the server's party."""
    return make_keyed(tmp_path_factory.mktemp("keyed"))


async def check_goes_on(keyed: KeyedFederation, office: CustodianOnDisk) -> None:
    """A new node of alice's, which asks for what is its own, has it."""
    node = fresh_node(keyed, "alice")
    async with custodian_line(node, office.address) as line:
        await line.first_warrant(patience_seconds=0)
        keys = await line.keys(("data",), patience_seconds=0)
    assert keys["data"] == keyed.secrets["alice", "data"]


# What is no request


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        ((), "key-request"),
        (("data", "data"), "key-request"),
        (("data", "state-share", "data"), "key-request"),
        (("vault",), "key-not-for-node"),
        (("data", "state-share", "vault"), "key-not-for-node"),
        (("password",), "message-malformed"),
        (("data", "data\0"), "message-malformed"),
        (9 * ("data",), "message-malformed"),
        ("data", "message-malformed"),
    ],
)
def test_a_request_for_nothing_twice_for_one_or_for_what_is_no_kind(
    run: Run, keyed: KeyedFederation, tmp_path: Path, kinds: object, code: str
) -> None:
    async def story() -> None:
        node = fresh_node(keyed, "alice")
        async with office_of(keyed, "alice", tmp_path) as office:
            async with raw_call(office.address, METHOD) as call:
                await warranted_in(call, node, office.address)
                asked = {"message": "key-request", "kinds": kinds}
                await call.write(msgspec.msgpack.encode(asked))
                refusal = await refusal_in(call, decode_from_custodian)
                assert refusal.code == code
            await until(lambda: office.sessions() == 0)
            assert office.events("keys-released") == []
            assert "key-released" not in kinds_recorded(office.custodian)
            [refused] = refusals_recorded(office.custodian)
            assert f'"{code}"' in refused
            assert office.refusals() == [code]
            await check_goes_on(keyed, office)
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())


# Encryption keys that are not the node's alone


class AnybodysIdentity(NodeIdentity):
    """A node's keys, of which the one for encryption is whatever was given."""

    __slots__ = ("point",)
    point: bytes

    @property
    @override
    def encryption_public(self) -> bytes:
        return self.point


def with_point(node: Node, point: bytes) -> Node:
    own = new_identity()
    odd = AnybodysIdentity(tls_key=own.tls_key, encryption_key=own.encryption_key)
    object.__setattr__(odd, "point", point)
    return replace(node, identity=odd)


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        (1).to_bytes(32, "little"),
        (PRIME - 1).to_bytes(32, "little"),
        PRIME.to_bytes(32, "little"),
        (PRIME + 1).to_bytes(32, "little"),
        ORDER_8,
    ],
    ids=lambda point: point.hex()[:8],
)
def test_a_node_shows_an_encryption_key_that_everybody_can_open(
    run: Run, keyed: KeyedFederation, tmp_path: Path, point: bytes
) -> None:
    """Of small order: whatever is sealed to it, the host opens without any key.

    Its code is genuine and its evidence names that key, so all else holds.
    """

    async def story() -> None:
        node = with_point(fresh_node(keyed, "alice"), point)
        async with office_of(keyed, "alice", tmp_path) as office:
            async with raw_call(office.address, METHOD) as call:
                await warranted_in(call, node, office.address)
                refusal = await refused_in(call, "data")
                assert (refusal.code, refusal.got) == ("released-keys", point.hex())
            assert office.events("keys-released") == []
            assert "key-released" not in kinds_recorded(office.custodian)
            [refused] = refusals_recorded(office.custodian)
            assert '"released-keys"' in refused
            await check_goes_on(keyed, office)
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())


def test_a_host_puts_its_own_encryption_key_into_the_hello(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """It has the stream in its hands, and the node's honest answers."""

    async def story() -> None:
        counting = CountingPlatform(keyed.federation.platform("alice"))
        node = quoting(fresh_node(keyed, "alice"), counting)
        async with office_of(keyed, "alice", tmp_path) as office:
            async with raw_call(office.address, METHOD) as call:
                meeting = NodeMeeting(node)
                meeting.pin(await fetch_unverified_certificate(office.address))
                mine = msgspec.structs.replace(
                    meeting.hello(), encryption_key=new_identity().encryption_public
                )
                await call.write(encode_message(mine))
                challenge = await message_in(
                    call, decode_from_custodian, CustodianChallenge
                )
                await call.write(encode_message(meeting.possess(challenge)))
                refusal = await refusal_in(call, decode_from_custodian)
                assert (refusal.code, refusal.got) == ("transcript-signature", "")
            assert counting.quotes == 0
            assert office.warrants() == ()
            assert "key-released" not in kinds_recorded(office.custodian)
            assert office.refusals() == ["transcript-signature"]
            await check_goes_on(keyed, office)
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())


# Too often


def test_a_host_that_starts_its_node_over_and_over_collects_no_more_after_a_while(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """Nor does it help to have the custodian started again, or its clock set back."""
    clock = HandClock()

    async def asks(office: CustodianOnDisk, times: int) -> None:
        node = fresh_node(keyed, "alice", clock=clock)
        async with custodian_line(node, office.address) as line:
            await line.first_warrant(patience_seconds=0)
            for _ in range(times):
                await line.keys(("data",), patience_seconds=0)

    async def story() -> None:
        async with office_of(keyed, "alice", tmp_path, clock=clock) as office:
            for _ in range(2):
                await asks(office, RELEASES_AN_HOUR // 2)
            with pytest.raises(RefusedByPeer) as caught:
                await asks(office, 1)
            assert caught.value.code == "release-limit"
        for minutes in (-9, 59):
            clock.now = START + timedelta(minutes=minutes)
            async with office_of(keyed, "alice", tmp_path, clock=clock) as office:
                with pytest.raises(RefusedByPeer) as caught:
                    await asks(office, 1)
                assert caught.value.code == "release-limit"
                kinds = kinds_recorded(office.custodian)
                assert kinds.count("key-released") == RELEASES_AN_HOUR
                # Others are not made to wait for it.
                server = keyed.federation.node("aggregator", clock=clock)
                if minutes > 0:
                    share = await fetch_share(
                        server,
                        office.address,
                        party="alice",
                        patience_seconds=0,
                        log=RecordedLog().logger(),
                    )
                    assert share == keyed.secrets["alice", "state-share"]
        clock.now = START + timedelta(hours=1, seconds=1)
        async with office_of(keyed, "alice", tmp_path, clock=clock) as office:
            await asks(office, 1)
            assert len(refusals_recorded(office.custodian)) == 3
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())
