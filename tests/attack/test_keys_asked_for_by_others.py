"""Keys are asked for by everybody but the node that they belong to.

The custodians' ports, logs and registers are real; each story ends with what left them
and with what lies on their disks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.support.custodian_on_disk import (
    CustodianOnDisk,
    custodian_on_disk,
    unwarranted,
)
from tests.support.custodian_port import custodian_line
from tests.support.custody_keys import KeyedFederation, make_keyed
from tests.support.custody_meeting import custodian_of
from tests.support.enrolment_port import raw_call
from tests.support.federation_in_memory import START, quoting
from tests.support.plan_tree import measurement_of
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run

from cloister.custody.messages import (
    KeyRequest,
    KeysReleased,
    decode_from_custodian,
)
from cloister.custody.node_meeting import NodeMeeting
from cloister.custody.service import METHOD
from cloister.custody.share_line import fetch_share
from cloister.errors import CloisterError, RefusedByPeer, VerificationError
from cloister.plan.plan import plan_hash
from cloister.ratls.challenge import Message, Refusal, decode_message, encode_message
from cloister.ratls.exchange import Call
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node
from cloister.storage.keys import KeyKind, Secret


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Data keys of alice and bob, and shares of alice and the server's party."""
    return make_keyed(tmp_path_factory.mktemp("keyed"))


@asynccontextmanager
async def office_of(
    keyed: KeyedFederation, party: str, directory: Path
) -> AsyncIterator[CustodianOnDisk]:
    """Opens a party's custodian with what it keeps."""
    with custodian_of(
        keyed.federation, party, directory, keys=keyed.stores[party]
    ) as custodian:
        async with custodian_on_disk(custodian, directory) as office:
            yield office


def check_nothing_left(office: CustodianOnDisk, keyed: KeyedFederation) -> None:
    """No key was released, and none lies in a log or a register."""
    assert office.events("keys-released") == []
    kinds = [row.kind for row in office.custodian.register.records()]
    assert "key-released" not in kinds
    check_no_key_on_disk(office.log_path.parent.parent, keyed)


def check_no_key_on_disk(directory: Path, keyed: KeyedFederation) -> None:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        for key in keyed.secrets.values():
            secret = key.reveal()
            for form in (secret, secret.hex().encode()):
                assert form not in content, path


async def ask(
    node: Node, office: CustodianOnDisk, *kinds: KeyKind
) -> dict[KeyKind, Secret]:
    """Has a node meet a custodian as its own, and ask."""
    async with custodian_line(node, office.address) as line:
        await line.first_warrant(patience_seconds=0)
        return await line.keys(kinds, patience_seconds=0)


async def reply_in(call: Call) -> Message:
    raw = await call.read()
    assert isinstance(raw, bytes)
    message: Message = decode_message(raw, decode_from_custodian)
    return message


async def warranted_session(
    node: Node, office: CustodianOnDisk, call: Call
) -> NodeMeeting:
    """Goes through a session until the node has its warrant."""
    meeting = NodeMeeting(node)
    meeting.pin(await fetch_unverified_certificate(office.address))
    await call.write(encode_message(meeting.hello()))
    await call.write(encode_message(meeting.possess(await reply_in(call))))  # type: ignore[arg-type]
    await call.write(encode_message(meeting.prove(await reply_in(call))))  # type: ignore[arg-type]
    meeting.accept(await reply_in(call))  # type: ignore[arg-type]
    return meeting


@pytest.mark.parametrize("kind", ["data", "vault", "state-share"])
def test_a_node_of_another_party_asks_as_if_the_custodian_were_its_own(
    run: Run, keyed: KeyedFederation, tmp_path: Path, kind: KeyKind
) -> None:
    """Bob's node knows alice's address, and does not look whose certificate it is."""

    async def story() -> None:
        bob = unwarranted(keyed.federation.node("bob"))
        async with office_of(keyed, "alice", tmp_path) as office:
            async with raw_call(office.address, METHOD) as call:
                hello = NodeMeeting(bob).hello()
                await call.write(encode_message(hello))
                await reply_in(call)  # alice holds a share, so it might come for that
                await call.write(encode_message(KeyRequest(kinds=(kind,))))
                refusal = await reply_in(call)
                assert isinstance(refusal, Refusal)
                assert (refusal.code, refusal.got) == ("message-order", "")
            check_nothing_left(office, keyed)

    run(story())


def test_a_node_says_that_it_is_of_the_party_whose_key_it_wants(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """The server's node, of genuine code, under alice's name and role."""

    async def story() -> None:
        liar = quoting(
            unwarranted(keyed.federation.node("alice")),
            keyed.federation.platform("aggregator"),
        )
        async with office_of(keyed, "alice", tmp_path) as office:
            with pytest.raises(RefusedByPeer) as caught:
                await ask(liar, office, "data")
            assert caught.value.code == "appraisal-measurement"
            check_nothing_left(office, keyed)

    run(story())


def test_code_that_the_party_did_not_consent_to_asks_for_its_key(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        other = measurement_of("worker", task_source=b"upload(everything)")
        node = quoting(
            unwarranted(keyed.federation.node("alice")),
            keyed.federation.platform("alice", measurement=other),
        )
        async with office_of(keyed, "alice", tmp_path) as office:
            with pytest.raises(RefusedByPeer) as caught:
                await ask(node, office, "data")
            assert caught.value.code == "appraisal-measurement"
            check_nothing_left(office, keyed)

    run(story())


def test_a_host_names_itself_the_owner_of_the_keys_in_a_plan_of_its_own(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """Genuine code under the host's plan, which wants the same keys."""

    async def story() -> None:
        plan = keyed.plan
        mine = msgspec.structs.replace(
            plan, plan=msgspec.structs.replace(plan.plan, run="mine")
        )
        node = unwarranted(
            replace(
                keyed.federation.node("alice"), plan=mine, plan_hash=plan_hash(mine)
            )
        )
        async with office_of(keyed, "alice", tmp_path) as office:
            with pytest.raises(RefusedByPeer) as caught:
                await ask(node, office, "data")
            assert caught.value.code == "plan-not-consented"
            check_nothing_left(office, keyed)

    run(story())


def test_a_node_whose_party_withdrew_asks_once_more(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """Its session is open, and its warrant in force."""

    async def story() -> None:
        node = unwarranted(keyed.federation.node("alice"))
        async with (
            office_of(keyed, "alice", tmp_path) as office,
            custodian_line(node, office.address) as line,
        ):
            await line.first_warrant(patience_seconds=0)
            register = office.custodian.register
            register.withdraw(plan_hash(keyed.plan), at=START)
            with pytest.raises(RefusedByPeer) as caught:
                await line.keys(("data",), patience_seconds=60)
            assert caught.value.code == "plan-withdrawn"
            check_nothing_left(office, keyed)
            # What it was refused is on record, with what it had shown.
            [refused] = [it for it in register.records() if it.kind == "node-refused"]
            assert b'"plan-withdrawn"' in refused.payload

    run(story())


def test_a_node_that_was_replaced_asks_in_its_open_session(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        old, new = (unwarranted(keyed.federation.node("alice")) for _ in range(2))
        async with office_of(keyed, "alice", tmp_path) as office:
            async with custodian_line(old, office.address) as line:
                await line.first_warrant(patience_seconds=0)
                keys = await ask(new, office, "data")
                assert keys["data"] == keyed.secrets["alice", "data"]
                with pytest.raises(RefusedByPeer) as caught:
                    await line.keys(("data",), patience_seconds=60)
                assert caught.value.code == "warrant-superseded"
            [released] = office.events("keys-released")
            assert released["epoch"] == 2
            check_no_key_on_disk(tmp_path, keyed)

    run(story())


def test_a_released_blob_is_fed_to_another_node_of_the_same_code(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """The host kept what its node received, and starts a second one."""

    async def story() -> None:
        first, second = (unwarranted(keyed.federation.node("alice")) for _ in range(2))
        async with office_of(keyed, "alice", tmp_path) as office:
            async with raw_call(office.address, METHOD) as call:
                meeting = await warranted_session(first, office, call)
                request = meeting.request(("data",))
                await call.write(encode_message(request))
                blob = await reply_in(call)
                assert isinstance(blob, KeysReleased)
            async with raw_call(office.address, METHOD) as call:
                other = await warranted_session(second, office, call)
                with pytest.raises(VerificationError) as caught:
                    other.open(blob, kinds=("data",))
                assert caught.value.code == "released-keys"
            # The node that it was for opens it, and only in that session.
            opened = meeting.open(blob, kinds=("data",))
            assert opened["data"] == keyed.secrets["alice", "data"]
            assert len(office.events("keys-released")) == 1
            check_no_key_on_disk(tmp_path, keyed)

    run(story())


@pytest.mark.parametrize("party", ["bob", "alice"])
def test_a_share_is_asked_for_at_the_wrong_door(
    run: Run, keyed: KeyedFederation, tmp_path: Path, party: str
) -> None:
    """The host writes another custodian's address where the share is said to be."""

    async def story() -> None:
        node = keyed.federation.node("alice")
        async with office_of(keyed, party, tmp_path) as office:
            with pytest.raises(CloisterError) as caught:
                await fetch_share(
                    node,
                    office.address,
                    party="aggregator",
                    patience_seconds=0,
                    log=RecordedLog().logger(),
                )
            assert caught.value.code == "custodian-certificate-signature"
            # It did not even hear who came.
            assert office.refusals() == []
            check_nothing_left(office, keyed)

    run(story())


def test_a_node_of_an_old_epoch_asks_for_another_partys_share(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """Its warrant is good until tomorrow, and its own custodian is not asked."""

    async def story() -> None:
        async with office_of(keyed, "aggregator", tmp_path) as office:
            for epoch, code in ((2, None), (1, "epoch-old"), (2, "epoch-forked")):
                node = keyed.federation.node("alice", epoch=epoch)
                attempt = fetch_share(
                    node,
                    office.address,
                    party="aggregator",
                    patience_seconds=0,
                    log=RecordedLog().logger(),
                )
                if code is None:
                    assert await attempt == keyed.secrets["aggregator", "state-share"]
                    continue
                with pytest.raises(RefusedByPeer) as caught:
                    await attempt
                assert caught.value.code == code
            assert len(office.events("keys-released")) == 1
            assert office.refusals() == ["epoch-old", "epoch-forked"]
            check_no_key_on_disk(tmp_path, keyed)

    run(story())


def test_whoever_has_a_partys_key_asks_for_the_share_of_another(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """Alice's custodian is taken over: it warrants whatever node it likes."""

    async def story() -> None:
        other = measurement_of("worker", task_source=b"keep(everything)")
        node = quoting(
            keyed.federation.node("alice", epoch=2**40),
            keyed.federation.platform("alice", measurement=other),
        )
        async with office_of(keyed, "aggregator", tmp_path) as office:
            with pytest.raises(RefusedByPeer) as caught:
                await fetch_share(
                    node,
                    office.address,
                    party="aggregator",
                    patience_seconds=0,
                    log=RecordedLog().logger(),
                )
            assert caught.value.code == "appraisal-measurement"
            # Nor did it age alice's real node.
            assert office.custodian.register.foreign_warrants() == ()
            check_nothing_left(office, keyed)

    run(story())
