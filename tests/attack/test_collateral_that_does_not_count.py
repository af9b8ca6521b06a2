"""Collateral decides who is refused, so hosts and peers would like to choose it.

A peer cannot: no message has room for any. A host can, on its own disk, and with that
it can only have its own node refuse everybody.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.support.bad_collateral import (
    NUMBER,
    Text,
    expired,
    for_another_family,
    good,
    judging_by,
    of_an_old_number,
    of_the_future,
    signed_by_another_key,
    torn,
    with_a_forged_list,
    write_collateral,
)
from tests.support.custodian_on_disk import (
    CustodianOnDisk,
    ask_for_warrant,
    custodian_on_disk,
    unwarranted,
)
from tests.support.custody_meeting import custodian_of
from tests.support.enrolment_port import raw_call
from tests.support.federation_in_memory import Federation, make_federation, quoting
from tests.support.hostile_platforms import CountingPlatform
from tests.support.meeting import transcript_of
from tests.support.open_server import open_server
from tests.support.plan_tree import put
from tests.support.published_collateral import publish, revoking
from tests.support.running import Run

from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    decode_from_custodian,
)
from cloister.custody.node_meeting import NodeMeeting
from cloister.custody.service import METHOD as CUSTODY
from cloister.errors import (
    CloisterError,
    PeerInTrouble,
    RefusedByPeer,
)
from cloister.plan.site import Address
from cloister.ratls.challenge import (
    Challenge,
    EvidenceProof,
    Message,
    Refusal,
    ServerProof,
    decode_from_server,
    decode_message,
    encode_message,
)
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.enrolling import enrol
from cloister.ratls.exchange import Call
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node

KINDS = {
    expired: "crl-expired",
    of_the_future: "crl-not-yet-valid",
    signed_by_another_key: "tcb-info-signature",
    with_a_forged_list: "crl-signature",
    for_another_family: "collateral-foreign",
    of_an_old_number: "appraisal-evaluation-number",
    torn: "collateral-damaged",
}
every_kind = pytest.mark.parametrize(
    ("text", "code"), KINDS.items(), ids=[kind.__name__ for kind in KINDS]
)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Whose plan wants collateral after a TCB recovery; everybody has it."""

    def wanting(role: str) -> tuple[str, str, str]:
        return ("policy", role, "min_tcb_evaluation_number")

    made = make_federation(
        tmp_path_factory.mktemp("federation"),
        change=lambda tree: put(put(tree, wanting("server"), 2), wanting("worker"), 2),
    )
    assert NUMBER == 2
    write_collateral(made, Path(made.root.directory), good)
    return made


def having(node: Node, directory: Path) -> Node:
    return replace(node, appraiser=judging_by(node.appraiser, directory))


# On a host's disk


@every_kind
def test_a_worker_whose_host_has_it_refuses_the_server_and_disturbs_nobody(
    run: Run, federation: Federation, tmp_path: Path, text: Text, code: str
) -> None:
    own = CountingPlatform(federation.platform("alice"))
    directory = write_collateral(federation, tmp_path / "collateral", text)
    alice = having(quoting(federation.node("alice"), own), directory)

    async def story() -> None:
        async with open_server(federation.node("aggregator"), tmp_path) as port:
            with pytest.raises(CloisterError) as caught:
                await enrol(alice, port.enrolment)
            assert not isinstance(caught.value, RefusedByPeer)
            assert caught.value.code == code
            assert own.quotes == 0
            assert port.admitted() == []
            assert port.refusals() == [code]
            await enrol(federation.node("bob"), port.enrolment)
            assert port.admitted() == [("bob", 1)]

    run(story())


@every_kind
def test_a_server_whose_host_has_it_admits_nobody(
    run: Run, federation: Federation, tmp_path: Path, text: Text, code: str
) -> None:
    directory = write_collateral(federation, tmp_path / "collateral", text)
    server = having(federation.node("aggregator"), directory)

    async def story() -> None:
        async with open_server(server, tmp_path / "run") as port:
            for party in ("alice", "bob"):
                # Most are the server's own trouble, and no word about the client.
                with pytest.raises((RefusedByPeer, PeerInTrouble)) as caught:
                    await enrol(federation.node(party), port.enrolment)
                assert caught.value.code == code
                assert str(tmp_path) not in str(caught.value)
            assert port.admitted() == []
            assert port.refusals() == [code, code]
            assert port.events("peer-admitted") == []
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


@every_kind
def test_a_custodian_that_has_it_warrants_nobody_until_it_has_better(
    run: Run, federation: Federation, tmp_path: Path, text: Text, code: str
) -> None:
    directory = write_collateral(federation, tmp_path / "collateral", text)

    async def story() -> None:
        with custodian_of(federation, "alice", tmp_path / "registers") as custodian:
            judging = replace(
                custodian, appraiser=judging_by(custodian.appraiser, directory)
            )
            async with custodian_on_disk(judging, tmp_path) as office:
                node = unwarranted(federation.node("alice"))
                with pytest.raises((RefusedByPeer, PeerInTrouble)) as caught:
                    await ask_for_warrant(node, office)
                assert caught.value.code == code
                assert str(tmp_path) not in str(caught.value)
                assert office.warrants() == ()
                assert office.refusals() == [code]
                # Files are read each time.
                write_collateral(federation, directory, good)
                await ask_for_warrant(node, office)
                [row] = office.warrants()
                assert row.epoch == 1

    run(story())


# In a message


def with_collateral(message: Message, collateral: str) -> bytes:
    """Returns a message that also brings what its sender would be judged by."""
    fields = msgspec.msgpack.decode(encode_message(message))
    return msgspec.msgpack.encode({**fields, "collateral": collateral})


class Bringing:
    """A node that sends collateral with its message of one number."""

    def __init__(self, call: Call, collateral: str, *, at: int) -> None:
        self._call = call
        self._collateral = collateral
        self._left = at

    async def say(
        self, message: Message, decoder: msgspec.msgpack.Decoder[Message]
    ) -> Message:
        raw = (
            encode_message(message)
            if self._left
            else with_collateral(message, self._collateral)
        )
        self._left -= 1
        await self._call.write(raw)
        answer = await self._call.read()
        assert isinstance(answer, bytes)
        return decode_message(answer, decoder)


async def to_server(node: Node, address: Address, speaker: Bringing) -> Message:
    client = ClientEnrolment(node)
    client.pin(await fetch_unverified_certificate(address))
    answer: Message = await speaker.say(client.hello(), decode_from_server)
    if isinstance(answer, Challenge):
        answer = await speaker.say(client.answer(answer), decode_from_server)
    if isinstance(answer, ServerProof):
        quote = node.platform.quote(transcript_of(client).client_report_data())
        answer = await speaker.say(EvidenceProof(quote=quote), decode_from_server)
    return answer


async def to_custodian(
    node: Node, office: CustodianOnDisk, speaker: Bringing
) -> Message:
    meeting = NodeMeeting(node)
    meeting.pin(await fetch_unverified_certificate(office.address))
    answer: Message = await speaker.say(meeting.hello(), decode_from_custodian)
    if isinstance(answer, CustodianChallenge):
        answer = await speaker.say(meeting.possess(answer), decode_from_custodian)
    if isinstance(answer, CustodianProof):
        answer = await speaker.say(meeting.prove(answer), decode_from_custodian)
    return answer


@pytest.fixture
def revoked(tmp_path: Path) -> tuple[Federation, str]:
    """A federation whose alice was revoked, and the collateral of the day before."""
    made = make_federation(tmp_path / "revoked")
    before = good(made.root, "tdx")
    platform = made.platform("alice")
    publish(made, revoking("tdx", platform.quote(bytes(64))))
    return made, before


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_no_message_to_a_server_has_room_for_collateral(
    run: Run, revoked: tuple[Federation, str], tmp_path: Path, at: int
) -> None:
    """In the fourth story it brings none, and is told what it is."""
    federation, collateral = revoked

    async def story() -> None:
        server = federation.node("aggregator")
        async with open_server(server, tmp_path / "run") as port:
            async with raw_call(port.enrolment) as call:
                speaker = Bringing(call, collateral, at=at)
                ended = await to_server(
                    federation.node("alice"), port.enrolment, speaker
                )
            assert isinstance(ended, Refusal)
            code = "certificate-revoked" if at == 3 else "message-malformed"
            assert ended.code == code
            assert port.admitted() == []
            assert port.refusals() == [code]
            await enrol(federation.node("bob"), port.enrolment)
            assert port.admitted() == [("bob", 1)]

    run(story())


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_no_message_to_a_custodian_has_room_for_collateral(
    run: Run, revoked: tuple[Federation, str], tmp_path: Path, at: int
) -> None:
    federation, collateral = revoked

    async def story() -> None:
        with custodian_of(federation, "alice", tmp_path / "registers") as custodian:
            async with custodian_on_disk(custodian, tmp_path) as office:
                node = unwarranted(federation.node("alice"))
                async with raw_call(office.address, CUSTODY) as call:
                    speaker = Bringing(call, collateral, at=at)
                    ended = await to_custodian(node, office, speaker)
                assert isinstance(ended, Refusal)
                code = "certificate-revoked" if at == 3 else "message-malformed"
                assert ended.code == code
                assert office.warrants() == ()
                assert office.refusals() == [code]

    run(story())
