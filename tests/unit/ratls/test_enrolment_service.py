from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from tests.support.audit import FullDisk, RecordedDoor
from tests.support.enrolment_port import (
    EnrolmentPort,
    enrolment_port,
    raw_call,
    raw_channel,
)
from tests.support.federation_in_memory import (
    Federation,
    HandClock,
    make_federation,
    quoting,
    rewarranted,
)
from tests.support.plan_tree import measurement_of
from tests.support.published_collateral import collateral_path
from tests.support.running import Run, until

from cloister.errors import PeerInTrouble, RefusedByPeer
from cloister.ratls.certificate import SERVER_NAME
from cloister.ratls.challenge import (
    MAX_MESSAGE_BYTES,
    Admission,
    Challenge,
    EvidenceProof,
    Message,
    Refusal,
    decode_from_server,
    decode_message,
    encode_message,
)
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.enrolling import enrol
from cloister.ratls.enrolment_service import METHOD, describe_peer
from cloister.ratls.exchange import Call
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.limits import Limits
from cloister.ratls.node import Node
from cloister.ratls.refusal_log import TOLD_PER_MINUTE

UnaryUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
ADMISSION = Admission(certificate=b"", expires_at=0, last_round=1)
# A client that is in no hurry, to a server that is.
HURRIED = Limits(stranger_seconds=0.2, handshake_seconds=5)


async def refusal_in(call: Call) -> Refusal:
    """Returns the refusal that the server sends next."""
    raw = await call.read()
    assert isinstance(raw, bytes)
    message: Message = decode_message(raw, decode_from_server)
    assert isinstance(message, Refusal)
    return message


def test_whoever_is_admitted_is_told_of_in_the_log_and_to_the_server(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            await enrol(alice, port.address)
            [peer] = port.table.parties()
            assert port.told == [peer]
            [line] = port.log.events
            assert line == {
                "event": "peer-admitted",
                "level": "info",
                **describe_peer(peer),
            }
            assert line["measurements"] == {
                "mrtd": measurement_of("worker").mrtd.hex(),
                "rtmr0": measurement_of("worker").rtmr0.hex(),
                "rtmr1": measurement_of("worker").rtmr1.hex(),
                "rtmr2": measurement_of("worker").rtmr2.hex(),
            }

    run(story())


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "message-malformed"),
        (b"\xa1\xff", "message-malformed"),
        (b"\x81\xa7message\xa5\xff\xff\xff\xff\xff", "message-malformed"),
        (bytes(MAX_MESSAGE_BYTES), "message-malformed"),
        (encode_message(ADMISSION), "message-malformed"),
    ],
)
def test_a_client_that_talks_nonsense_is_told_so_and_logged(
    run: Run, server: Node, raw: bytes, code: str
) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            async with raw_call(port.address) as call:
                await call.write(raw)
                assert (await refusal_in(call)).code == code
            assert port.refusals() == [code]
            assert port.admitted() == []

    run(story())


def test_a_client_that_hangs_up_at_once_is_logged_and_forgotten(
    run: Run, server: Node
) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            async with raw_call(port.address) as call:
                await call.done_writing()
                await call.read()
            assert port.refusals() == ["message-order"]
            assert port.admitted() == []

    run(story())


def test_no_other_method_exists_on_the_enrolment_port(run: Run, server: Node) -> None:
    async def story() -> None:
        async with (
            enrolment_port(server) as port,
            raw_channel(port.address) as channel,
        ):
            for method in ("/cloister.Training/Receive", METHOD + "s", "/"):
                call: UnaryUnary = channel.unary_unary(method)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(story())


def test_a_client_whose_warrant_is_refused_hears_a_code_and_a_line(
    run: Run, federation: Federation, server: Node, alice: Node
) -> None:
    async def story() -> None:
        expired = rewarranted(federation, alice, issued_at=0, expires_at=1)
        async with enrolment_port(server) as port:
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(expired, port.address)
            assert caught.value.code == "warrant-expired"
            assert (caught.value.expected, caught.value.got) == ("", "")
            # The server's own log has it all.
            [line] = port.log.named("peer-refused")
            assert "Unix time" in str(line["reason"])
            assert port.admitted() == []
            assert port.told == []

    run(story())


def test_a_warranted_client_whose_evidence_is_refused_hears_why(
    run: Run, federation: Federation, server: Node, alice: Node
) -> None:
    async def story() -> None:
        other = measurement_of("worker", task_source=b"other")
        stranger = quoting(alice, federation.platform("alice", measurement=other))
        async with enrolment_port(server) as port:
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(stranger, port.address)
            assert caught.value.code == "appraisal-measurement"
            assert measurement_of("worker").mrtd.hex() in caught.value.expected
            assert other.mrtd.hex() in caught.value.got
            [line] = port.log.named("peer-refused")
            assert line["peer"] == "alice"
            assert port.admitted() == []
            assert port.told == []

    run(story())


def test_a_client_that_says_nothing_is_given_up(run: Run, server: Node) -> None:
    async def story() -> None:
        async with enrolment_port(server, limits=HURRIED) as port:
            async with raw_call(port.address) as call:
                assert await call.read() is grpc.aio.EOF
            assert len(port.log.named("enrolment-timeout")) == 1
            assert port.admitted() == []

    run(story())


def test_a_client_that_falls_silent_after_its_hello_is_given_up(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        async with enrolment_port(server, limits=HURRIED) as port:
            async with raw_call(port.address) as call:
                await call.write(encode_message(ClientEnrolment(alice).hello()))
                assert isinstance(await call.read(), bytes)
                assert await call.read() is grpc.aio.EOF
            assert len(port.log.named("enrolment-timeout")) == 1

    run(story())


def test_a_client_that_never_proves_itself_is_given_up(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        hurried = Limits(stranger_seconds=5, handshake_seconds=0.5)
        async with enrolment_port(server, limits=hurried) as port:
            client = ClientEnrolment(alice)
            client.pin(await fetch_unverified_certificate(port.address))
            async with raw_call(port.address) as call:
                await call.write(encode_message(client.hello()))
                raw = await call.read()
                assert isinstance(raw, bytes)
                challenge: Message = decode_message(raw, decode_from_server)
                assert isinstance(challenge, Challenge)
                await call.write(encode_message(client.answer(challenge)))
                assert isinstance(await call.read(), bytes)  # the server's proof
                assert await call.read() is grpc.aio.EOF
            assert len(port.log.named("enrolment-timeout")) == 1
            assert port.admitted() == []

    run(story())


@asynccontextmanager
async def unread(port: EnrolmentPort, *messages: bytes) -> AsyncIterator[None]:
    """Says something and leaves no room for an answer: it never reads one."""
    certificate = await fetch_unverified_certificate(port.address)
    channel = grpc.aio.secure_channel(
        str(port.address),
        grpc.ssl_channel_credentials(_pem(certificate)),
        options=[
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.http2.lookahead_bytes", 5),
            ("grpc.http2.bdp_probe", 0),
        ],
    )
    async with channel:
        call: Call = channel.stream_stream(METHOD)()
        for message in messages:
            await call.write(message)
        yield


def _pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()


def test_a_client_that_reads_nothing_holds_its_place_no_longer_than_any_other(
    run: Run, server: Node, alice: Node
) -> None:
    """The server waits for room to send in, and not for ever."""

    async def story() -> None:
        hello = encode_message(ClientEnrolment(alice).hello())
        hurried = Limits(stranger_seconds=5, handshake_seconds=0.2, at_once=1)
        async with enrolment_port(server, limits=hurried) as port:
            async with unread(port, hello):
                await until(lambda: port.log.named("enrolment-timeout") != [])
                await enrol(alice, port.address)
            assert port.admitted() == [("alice", 1)]

    run(story())


def test_one_enrolment_too_many_is_told_that_the_server_is_busy(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        hello = encode_message(ClientEnrolment(alice).hello())
        async with enrolment_port(server, limits=Limits(at_once=3)) as port:
            async with AsyncExitStack() as others:
                for _ in range(3):
                    call = await others.enter_async_context(raw_call(port.address))
                    await call.write(hello)
                    assert isinstance(await call.read(), bytes)
                # It hears so before it has said anything; one who writes meanwhile may
                # find the call ended instead, and tries again all the same.
                async with raw_call(port.address) as call:
                    raw = await call.read()
                assert isinstance(raw, bytes)
                refusal: Message = decode_message(raw, decode_from_server)
                assert isinstance(refusal, Refusal)
                assert (refusal.code, refusal.trouble) == ("server-busy", True)
            assert port.refusals() == ["server-busy"]
            # Those who left made room.
            await until(lambda: port.places() == 0)
            await enrol(alice, port.address)
            assert port.admitted() == [("alice", 1)]

    run(story())


def test_a_party_that_enrols_in_a_loop_is_told_that_the_server_is_busy(
    run: Run, server: Node, alice: Node, bob: Node
) -> None:
    """Each admission is kilobytes on the server's disk."""

    async def story() -> None:
        limits = Limits(enrolments_a_minute=3)
        async with enrolment_port(server, limits=limits) as port:
            for _ in range(3):
                await enrol(alice, port.address)
            for _ in range(2):
                with pytest.raises(PeerInTrouble) as caught:
                    await enrol(alice, port.address)
                assert caught.value.code == "server-busy"
            await enrol(bob, port.address)
            assert len(port.door.admitted) == 4
            # Nor does its refusal fill the disk: it is no judgement.
            assert port.door.refused == []
            assert port.refusals() == ["server-busy", "server-busy"]
            assert port.admitted() == [("alice", 1), ("bob", 1)]

    run(story())


def test_a_refused_clients_place_is_free_at_once(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        async with enrolment_port(server, limits=Limits(at_once=1)) as port:
            for _ in range(5):
                async with raw_call(port.address) as call:
                    await call.write(b"")
                    assert (await refusal_in(call)).code == "message-malformed"
                    assert await call.read() is grpc.aio.EOF
            await enrol(alice, port.address)
            assert port.admitted() == [("alice", 1)]

    run(story())


def test_a_flood_of_refusals_is_counted_and_hides_no_partys_node(
    run: Run, federation: Federation, server: Node, alice: Node
) -> None:
    async def story() -> None:
        other = measurement_of("worker", task_source=b"other")
        stranger = quoting(alice, federation.platform("alice", measurement=other))
        async with enrolment_port(server) as port:
            async with raw_channel(port.address) as channel:
                for _ in range(TOLD_PER_MINUTE + 5):
                    call: Call = channel.stream_stream(METHOD)()
                    await call.write(b"")
                    assert (await refusal_in(call)).code == "message-malformed"
            with pytest.raises(RefusedByPeer):
                await enrol(stranger, port.address)
            assert port.refusals() == [
                *TOLD_PER_MINUTE * ["message-malformed"],
                "appraisal-measurement",
            ]
        [left_out] = port.log.named("refusals-left-out")
        assert left_out["count"] == 5

    run(story())


# What is recorded.


def test_who_is_admitted_is_recorded_before_it_hears_of_it(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            await enrol(alice, port.address)
            [it] = port.door.admitted
            assert (it.admitted,) == port.table.admitted()
            assert port.door.refused == []

    run(story())


def test_a_node_with_a_good_warrant_is_refused_on_record(
    run: Run, federation: Federation, server: Node, alice: Node
) -> None:
    async def story() -> None:
        other = measurement_of("worker", task_source=b"other")
        changed = quoting(alice, federation.platform("alice", measurement=other))
        async with enrolment_port(server) as port:
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(changed, port.address)
            assert caught.value.expected != ""
            [it] = port.door.refused
            assert (it.role, it.party) == ("worker", "alice")
            assert it.error.code == caught.value.code == "appraisal-measurement"
            assert it.testimony.warrant == alice.warrant.current
            assert isinstance(it.testimony.proof, EvidenceProof)
            assert it.collateral is not None

    run(story())


def test_a_superseded_node_is_refused_on_record(
    run: Run, federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    async def story() -> None:
        newer = federation.node("alice", clock=clock, epoch=2)
        async with enrolment_port(server) as port:
            await enrol(newer, port.address)
            with pytest.raises(RefusedByPeer):
                await enrol(alice, port.address)
            [it] = port.door.refused
            assert (it.party, it.error.code) == ("alice", "epoch-old")
            assert it.testimony.warrant == alice.warrant.current
            assert (it.testimony.proof, it.collateral) == (None, None)
            # Its party reads in the log that two of its nodes run.
            [line] = port.log.named("peer-refused")
            assert line["peer"] == "alice"

    run(story())


def test_a_known_client_that_talks_nonsense_is_refused_on_record(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            client = ClientEnrolment(alice)
            client.pin(await fetch_unverified_certificate(port.address))
            async with raw_call(port.address) as call:
                await call.write(encode_message(client.hello()))
                raw = await call.read()
                assert isinstance(raw, bytes)
                challenge: Message = decode_message(raw, decode_from_server)
                assert isinstance(challenge, Challenge)
                await call.write(encode_message(client.answer(challenge)))
                assert isinstance(await call.read(), bytes)  # the server's proof
                await call.write(b"")
                assert (await refusal_in(call)).code == "message-malformed"
            assert port.door.refusals() == [("alice", "message-malformed")]

    run(story())


def test_strangers_are_not_recorded(
    run: Run, federation: Federation, server: Node, alice: Node
) -> None:
    """Anybody could fill the disk."""

    async def story() -> None:
        async with enrolment_port(server) as port:
            for raw in (b"", encode_message(ADMISSION)):
                async with raw_call(port.address) as call:
                    await call.write(raw)
                    assert (await refusal_in(call)).code == "message-malformed"
            with pytest.raises(RefusedByPeer):
                await enrol(
                    rewarranted(federation, alice, issued_at=0, expires_at=1),
                    port.address,
                )
            assert len(port.refusals()) == 3
            assert port.door.refused == []

    run(story())


def test_what_stops_the_server_is_recorded_as_nobodys_refusal(
    run: Run, tmp_path: Path
) -> None:
    async def story() -> None:
        own = make_federation(tmp_path)
        async with enrolment_port(own.node("aggregator")) as port:
            alice = own.node("alice")
            collateral_path(own, "tdx").unlink()
            with pytest.raises(PeerInTrouble):
                await enrol(alice, port.address)
            assert port.refusals() == ["collateral-missing"]
            assert (port.door.refused, port.door.admitted) == ([], [])

    run(story())


def test_who_cannot_be_recorded_is_not_admitted_and_may_come_again(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        door = FullDisk()
        async with enrolment_port(server, door=door) as port:
            with pytest.raises(PeerInTrouble) as caught:
                await enrol(alice, port.address)
            assert caught.value.code == "audit-unwritable"
            assert "/disk" not in str(caught.value)
            # One attempt: what stops the server is no refusal of the node.
            assert (port.admitted(), port.told, door.tried) == ([], [], 1)
            [line] = port.log.named("peer-refused")
            assert (line["peer"], line["code"]) == ("alice", "audit-unwritable")
            assert "/disk" in str(line["reason"])

    run(story())


def test_a_refusal_that_cannot_be_recorded_is_one_all_the_same(
    run: Run, federation: Federation, server: Node, alice: Node
) -> None:
    async def story() -> None:
        other = measurement_of("worker", task_source=b"other")
        changed = quoting(alice, federation.platform("alice", measurement=other))
        async with enrolment_port(server, door=FullDisk()) as port:
            with pytest.raises(PeerInTrouble) as caught:
                await enrol(changed, port.address)
            assert caught.value.code == "audit-unwritable"
            assert "/disk" not in str(caught.value)
            assert port.admitted() == []
            assert port.refusals() == ["appraisal-measurement"]
            [line] = port.log.named("not-recorded")
            assert line["code"] == "audit-unwritable"

    run(story())


def test_an_exception_that_nobody_foresaw_tells_nobody_its_words(
    run: Run, server: Node, alice: Node
) -> None:
    def fail() -> None:
        raise LookupError("a canary")

    async def story() -> None:
        async with enrolment_port(server, door=RecordedDoor(fail)) as port:
            with pytest.raises(PeerInTrouble) as caught:
                await enrol(alice, port.address)
            assert caught.value.code == "unforeseen-error"
            assert "canary" not in str(caught.value)
            assert port.admitted() == []
            assert port.refusals() == ["unforeseen-error"]
            [line] = port.log.named("peer-refused")
            assert "LookupError at test_enrolment_service.py:" in str(line["reason"])
            assert "canary" not in str(port.log.events)

    run(story())
