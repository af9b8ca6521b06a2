from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import msgspec
import pytest
from tests.support.custodian_port import (
    OpenCustodian,
    custodian_line,
    custodian_port,
)
from tests.support.custody_keys import make_keyed
from tests.support.custody_meeting import custodian_of
from tests.support.enrolment_port import raw_call, raw_channel
from tests.support.federation_in_memory import START, Federation, HandClock, quoting
from tests.support.plan_tree import measurement_of
from tests.support.running import Run, until

from cloister.custody.custodian import Custodian
from cloister.custody.messages import Deposit, KeyRequest, decode_from_custodian
from cloister.custody.node_meeting import NodeMeeting
from cloister.custody.service import METHOD
from cloister.errors import PeerInTrouble, RefusedByPeer, StorageError
from cloister.plan.plan import plan_hash
from cloister.ratls.certificate import SERVER_NAME
from cloister.ratls.challenge import (
    MAX_MESSAGE_BYTES,
    Message,
    Refusal,
    decode_message,
    encode_message,
)
from cloister.ratls.epochs import key_digest
from cloister.ratls.exchange import Call
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.limits import Limits
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.refusal_log import TOLD_PER_MINUTE
from cloister.storage.keys import KeyKind, Secret

UnaryUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
MARK = Mark(round=1, state=b"s" * 32, server_epoch=1, server_key=b"k" * 32)


async def reply_in(call: Call) -> Message:
    """Returns the custodian's next message."""
    raw = await call.read()
    assert isinstance(raw, bytes)
    message: Message = decode_message(raw, decode_from_custodian)
    return message


async def refusal_in(call: Call) -> Refusal:
    """Returns the refusal that the custodian sends next."""
    message = await reply_in(call)
    assert isinstance(message, Refusal)
    return message


async def proved(office: OpenCustodian, node: Node, call: Call) -> NodeMeeting:
    """Goes through a session up to the node's proof, which it sends."""
    meeting = NodeMeeting(node)
    meeting.pin(await fetch_unverified_certificate(office.address))
    await call.write(encode_message(meeting.hello()))
    possession = meeting.possess(await reply_in(call))  # type: ignore[arg-type]
    await call.write(encode_message(possession))
    await call.write(encode_message(meeting.prove(await reply_in(call))))  # type: ignore[arg-type]
    return meeting


def check_bare(refusal: Refusal, federation: Federation) -> None:
    """What strangers hear names nothing of the party's."""
    assert (refusal.expected, refusal.got) == ("", "")
    for secret in (
        "alice",
        "blobs",
        plan_hash(federation.plan).hex(),
        measurement_of("worker").mrtd.hex(),
        "sqlite",
    ):
        assert secret not in refusal.what


def test_a_session_ends_with_a_warrant_in_the_log(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with custodian_port(custodian) as office:
            async with custodian_line(alice, office.address) as line:
                await line.renew()
                assert office.sessions() == 1
            await until(lambda: office.sessions() == 0)
            [signed] = office.log.named("warrant-signed")
            assert signed == {
                "event": "warrant-signed",
                "level": "info",
                "run": federation.plan.run_id,
                "role": "worker",
                "epoch": 1,
                "key": key_digest(alice.identity.tls_spki).hex()[:16],
                "admit": "attested",
                "round": 0,
            }
            assert office.refusals() == []

    run(story())


@pytest.mark.parametrize(
    "raw", [b"", b"\xa1\xff", bytes(MAX_MESSAGE_BYTES), encode_message({"a": 1})]
)
def test_a_node_that_talks_nonsense_is_told_so_and_logged(
    run: Run, federation: Federation, custodian: Custodian, raw: bytes
) -> None:
    async def story() -> None:
        async with custodian_port(custodian) as office:
            async with raw_call(office.address, METHOD) as call:
                await call.write(raw)
                refusal = await refusal_in(call)
                assert refusal.code == "message-malformed"
                check_bare(refusal, federation)
            assert office.refusals() == ["message-malformed"]

    run(story())


def test_no_other_method_exists_on_the_port(run: Run, custodian: Custodian) -> None:
    async def story() -> None:
        async with (
            custodian_port(custodian) as office,
            raw_channel(office.address) as channel,
        ):
            for method in ("/cloister.Enrolment/Enrol", METHOD + "s", "/"):
                call: UnaryUnary = channel.unary_unary(method)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(story())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 1}, "version-differs"),
        ({"plan_hash": bytes(32)}, "plan-not-consented"),
        ({"run_id": "x/y"}, "run-differs"),
        ({"party": "bob"}, "party-differs"),
        ({"role": "server"}, "role-differs"),
        ({"tls_key": bytes(91)}, "tls-key-invalid"),
    ],
)
def test_a_hello_from_elsewhere_is_answered_without_a_word_about_the_party(
    run: Run,
    federation: Federation,
    custodian: Custodian,
    alice: Node,
    change: dict[str, Any],
    code: str,
) -> None:
    async def story() -> None:
        hello = msgspec.structs.replace(NodeMeeting(alice).hello(), **change)
        async with custodian_port(custodian) as office:
            async with raw_call(office.address, METHOD) as call:
                await call.write(encode_message(hello))
                refusal = await refusal_in(call)
                assert refusal.code == code
                check_bare(refusal, federation)
            assert office.refusals() == [code]

    run(story())


def test_a_node_whose_evidence_is_refused_is_a_stranger_still(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    """Anybody can make a TLS key and show it; what the policies want is not his."""

    async def story() -> None:
        other = measurement_of("worker", task_source=b"other")
        node = quoting(alice, federation.platform("alice", measurement=other))
        async with custodian_port(custodian) as office:
            async with raw_call(office.address, METHOD) as call:
                await proved(office, node, call)
                refusal = await refusal_in(call)
                assert refusal.code == "appraisal-measurement"
                check_bare(refusal, federation)
            [line] = office.log.named("node-refused")
            assert measurement_of("worker").mrtd.hex() in str(line["reason"])
            assert custodian.register.warrants() == ()

    run(story())


def test_a_node_that_was_replaced_hears_why(
    run: Run,
    federation: Federation,
    custodian: Custodian,
    alice: Node,
    clock: HandClock,
) -> None:
    async def story() -> None:
        newer = federation.node("alice", clock=clock)
        async with custodian_port(custodian) as office:
            for node in (alice, newer):
                async with custodian_line(node, office.address) as line:
                    await line.renew()
            async with raw_call(office.address, METHOD) as call:
                await proved(office, alice, call)
                refusal = await refusal_in(call)
                assert refusal.code == "warrant-superseded"
                assert "epoch 2" in refusal.expected
            assert [row.epoch for row in custodian.register.warrants()] == [1, 2]

    run(story())


def test_a_message_that_is_no_deposit_ends_a_session(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with custodian_port(custodian) as office:
            async with raw_call(office.address, METHOD) as call:
                meeting = await proved(office, alice, call)
                meeting.accept(await reply_in(call))  # type: ignore[arg-type]
                await call.write(encode_message(meeting.hello()))
                refusal = await refusal_in(call)
                assert (refusal.code, refusal.got) == ("message-order", "Hello")
                assert await call.read() is grpc.aio.EOF
            assert office.refusals() == ["message-order"]

    run(story())


def test_a_deposit_before_the_warrant_is_out_of_order(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        deposit = encode_message(Deposit(mark=MARK))
        async with custodian_port(custodian) as office:
            async with raw_call(office.address, METHOD) as call:
                await call.write(deposit)
                assert (await refusal_in(call)).code == "message-order"
            async with raw_call(office.address, METHOD) as call:
                await call.write(encode_message(NodeMeeting(alice).hello()))
                await reply_in(call)
                await call.write(deposit)
                assert (await refusal_in(call)).code == "message-order"
            assert custodian.register.mark(federation.plan.run_id) is None

    run(story())


def test_a_request_for_keys_before_the_warrant_is_out_of_order(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        request = encode_message(KeyRequest(kinds=("data",)))
        async with custodian_port(custodian) as office:
            async with raw_call(office.address, METHOD) as call:
                await call.write(encode_message(NodeMeeting(alice).hello()))
                await reply_in(call)
                await call.write(request)
                assert (await refusal_in(call)).code == "message-order"
            assert office.log.named("keys-released") == []

    run(story())


@pytest.mark.parametrize(
    "kinds", [["everything"], "data", [9 * ["data"]], 9 * ["data"], None]
)
def test_a_request_for_what_is_no_kind_of_key_is_malformed(
    run: Run, custodian: Custodian, alice: Node, kinds: object
) -> None:
    async def story() -> None:
        raw = encode_message({"message": "key-request", "kinds": kinds})
        async with custodian_port(custodian) as office:
            async with raw_call(office.address, METHOD) as call:
                meeting = await proved(office, alice, call)
                meeting.accept(await reply_in(call))  # type: ignore[arg-type]
                await call.write(raw)
                assert (await refusal_in(call)).code == "message-malformed"
            assert office.log.named("keys-released") == []

    run(story())


class LockedStore:
    """A key manager that nobody opened."""

    def secret(self, key_id: str, *, kind: KeyKind) -> Secret:
        raise StorageError(f"/etc/secret: no {kind} {key_id}", code="store-locked")


def test_a_key_store_in_trouble_is_no_word_about_the_node(
    run: Run, tmp_path: Path
) -> None:
    keyed = make_keyed(tmp_path / "keyed")

    async def story() -> None:
        with custodian_of(
            keyed.federation, "alice", tmp_path, keys=LockedStore()
        ) as locked:
            node = keyed.federation.node("alice")
            async with (
                custodian_port(locked) as office,
                custodian_line(node, office.address) as line,
            ):
                with pytest.raises(PeerInTrouble) as caught:
                    await line.keys(("data",), patience_seconds=0)
                assert caught.value.code == "store-locked"
                assert "/etc/secret" not in str(caught.value)
                [said] = office.log.named("node-refused")
                assert "/etc/secret" in str(said["reason"])
            kinds = [row.kind for row in locked.register.records()]
            assert not {"key-released", "node-refused"} & set(kinds)

    run(story())


class ForeignStore:
    """A client of an organisation's key manager, which knows nothing of our errors."""

    def secret(self, key_id: str, *, kind: KeyKind) -> Secret:
        raise LookupError(f"https://vault.example/{kind}/{key_id}?token=s3cret")


def test_a_key_store_that_breaks_is_named_in_the_log_by_its_kind_alone(
    run: Run, tmp_path: Path
) -> None:
    """gRPC would send the text of an unexpected error to the node."""
    keyed = make_keyed(tmp_path / "keyed")

    async def story() -> None:
        with custodian_of(
            keyed.federation, "alice", tmp_path, keys=ForeignStore()
        ) as broken:
            node = keyed.federation.node("alice")
            async with (
                custodian_port(broken) as office,
                custodian_line(node, office.address) as line,
            ):
                with pytest.raises(PeerInTrouble) as caught:
                    await line.keys(("data",), patience_seconds=0)
                assert caught.value.code == "key-store-failed"
                assert "its own log says why" in str(caught.value)
                [said] = office.log.named("node-refused")
                assert "LookupError" in str(said["reason"])
                told = str(caught.value) + str(office.log.events)
                assert "vault.example" not in told
                assert "s3cret" not in told
            kinds = [row.kind for row in broken.register.records()]
            assert not {"key-released", "node-refused"} & set(kinds)

    run(story())


def test_a_node_that_refuses_its_custodian_is_logged_with_its_words(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with custodian_port(custodian) as office:
            async with raw_call(office.address, METHOD) as call:
                await call.write(encode_message(NodeMeeting(alice).hello()))
                await reply_in(call)
                words = Refusal(code="odd", what="not\nmine")
                await call.write(encode_message(words))
                assert await call.read() is grpc.aio.EOF
            [line] = office.log.named("refused-by-peer")
            assert line["reason"] == "the client refused this node: not mine"

    run(story())


@pytest.mark.parametrize("messages", [0, 1])
def test_a_stranger_that_falls_silent_is_given_up(
    run: Run, custodian: Custodian, alice: Node, messages: int
) -> None:
    async def story() -> None:
        hurried = Limits(stranger_seconds=0.2, handshake_seconds=5)
        async with custodian_port(custodian, limits=hurried) as office:
            async with raw_call(office.address, METHOD) as call:
                for _ in range(messages):
                    await call.write(encode_message(NodeMeeting(alice).hello()))
                    await reply_in(call)
                assert await call.read() is grpc.aio.EOF
            assert len(office.log.named("session-timeout")) == 1

    run(story())


def test_a_node_that_never_proves_itself_is_given_up(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        hurried = Limits(stranger_seconds=5, handshake_seconds=0.4)
        async with custodian_port(custodian, limits=hurried) as office:
            meeting = NodeMeeting(alice)
            meeting.pin(await fetch_unverified_certificate(office.address))
            async with raw_call(office.address, METHOD) as call:
                await call.write(encode_message(meeting.hello()))
                possession = meeting.possess(await reply_in(call))  # type: ignore[arg-type]
                await call.write(encode_message(possession))
                await reply_in(call)
                assert await call.read() is grpc.aio.EOF
            assert len(office.log.named("session-timeout")) == 1
            assert custodian.register.warrants() == ()

    run(story())


def test_a_warranted_node_may_be_silent_for_as_long_as_a_round_takes(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        hurried = Limits(stranger_seconds=0.2, handshake_seconds=0.4)
        async with custodian_port(custodian, limits=hurried) as office:
            async with (
                custodian_line(alice, office.address) as line,
                raw_call(office.address, METHOD) as stranger,
            ):
                await line.renew()
                # Until strangers were given up twice.
                assert await stranger.read() is grpc.aio.EOF
                async with raw_call(office.address, METHOD) as another:
                    assert await another.read() is grpc.aio.EOF
                await line.deposit(MARK)
            assert len(office.log.named("warrant-signed")) == 1
            assert custodian.register.mark(federation.plan.run_id) == MARK

    run(story())


@asynccontextmanager
async def unread(office: OpenCustodian, message: bytes) -> AsyncIterator[None]:
    """Says something and leaves no room for an answer: it never reads one."""
    certificate = await fetch_unverified_certificate(office.address)
    channel = grpc.aio.secure_channel(
        str(office.address),
        grpc.ssl_channel_credentials(ssl.DER_cert_to_PEM_cert(certificate).encode()),
        options=[
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.http2.lookahead_bytes", 5),
            ("grpc.http2.bdp_probe", 0),
        ],
    )
    async with channel:
        call: Call = channel.stream_stream(METHOD)()
        await call.write(message)
        yield


def test_a_node_that_reads_nothing_holds_its_place_no_longer_than_any_other(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        hello = encode_message(NodeMeeting(alice).hello())
        hurried = Limits(stranger_seconds=5, handshake_seconds=0.3, at_once=1)
        async with custodian_port(custodian, limits=hurried) as office:
            async with unread(office, hello):
                await until(lambda: office.log.named("session-timeout") != [])
                await until(lambda: office.sessions() == 0)
                async with custodian_line(alice, office.address) as line:
                    await line.renew()
            assert len(office.log.named("warrant-signed")) == 1

    run(story())


def test_one_session_too_many_is_told_that_the_custodian_is_busy(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        hello = encode_message(NodeMeeting(alice).hello())
        async with custodian_port(custodian, limits=Limits(at_once=2)) as office:
            async with AsyncExitStack() as others:
                for _ in range(2):
                    call = await others.enter_async_context(
                        raw_call(office.address, METHOD)
                    )
                    await call.write(hello)
                    await reply_in(call)
                # It hears so before it has said anything; one who writes meanwhile may
                # find the call ended instead, and tries again all the same.
                async with raw_call(office.address, METHOD) as one_more:
                    refusal = await refusal_in(one_more)
                # It says so of itself: no verdict on the node.
                assert (refusal.code, refusal.trouble) == ("custodian-busy", True)
            assert office.refusals()[0] == "custodian-busy"
            await until(lambda: office.sessions() == 0)
            async with custodian_line(alice, office.address) as line:
                await line.renew()

    run(story())


def test_a_flood_of_strangers_is_counted_and_hides_nothing_of_the_own_node(
    run: Run,
    federation: Federation,
    custodian: Custodian,
    alice: Node,
) -> None:
    async def story() -> None:
        async with custodian_port(custodian) as office:
            async with raw_channel(office.address) as channel:
                for _ in range(TOLD_PER_MINUTE + 7):
                    call: Call = channel.stream_stream(METHOD)()
                    await call.write(b"")
                    assert (await refusal_in(call)).code == "message-malformed"
            async with custodian_line(alice, office.address) as line:
                await line.renew()
                custodian.register.withdraw(plan_hash(federation.plan), at=START)
                with pytest.raises(RefusedByPeer):
                    await line.deposit(MARK)
            assert office.refusals()[-1] == "plan-withdrawn"
        [left_out] = office.log.named("refusals-left-out")
        assert left_out["count"] == 7

    run(story())


def test_a_custodian_in_trouble_does_not_say_where_its_files_are(
    run: Run,
    federation: Federation,
    custodian: Custodian,
    alice: Node,
    tmp_path: Path,
) -> None:
    async def story() -> None:
        path = tmp_path / "alice.sqlite"
        async with custodian_port(custodian) as office:
            path.rename(tmp_path / "stolen.sqlite")
            async with raw_call(office.address, METHOD) as call:
                await call.write(encode_message(NodeMeeting(alice).hello()))
                refusal = await refusal_in(call)
            assert refusal.code == "register-missing"
            assert refusal.what == "it cannot go on; its own log says why"
            check_bare(refusal, federation)
            [line] = office.log.named("node-refused")
            assert str(path) in str(line["reason"])

    run(story())
