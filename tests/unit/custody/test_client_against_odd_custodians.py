from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import msgspec
import pytest
from tests.support.addresses import free_addresses
from tests.support.custodian_port import custodian_line
from tests.support.custody_meeting import CERTIFICATE_LIFE
from tests.support.federation_in_memory import (
    START,
    Federation,
    HandClock,
    quoting,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.running import Run, until
from typing_extensions import override

from cloister.custody.certificate import make_custodian_certificate
from cloister.custody.custodian import Custodian
from cloister.custody.meeting import CustodianMeeting
from cloister.custody.messages import (
    Deposited,
    Possession,
    decode_from_node,
)
from cloister.errors import (
    ProtocolError,
    VerificationError,
)
from cloister.plan.site import Address
from cloister.ratls.challenge import (
    MAX_MESSAGE_BYTES,
    EvidenceProof,
    Hello,
    Message,
    Refusal,
    decode_message,
    encode_message,
)
from cloister.ratls.channels import enrolment_credentials, listen, server_options
from cloister.ratls.identity import new_identity
from cloister.ratls.limits import Limits
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.warrant import HeldWarrant

MARK = Mark(round=1, state=b"s" * 32, server_epoch=1, server_key=b"k" * 32)
LATER = msgspec.structs.replace(MARK, round=2, state=b"t" * 32)


@pytest.fixture
def alice(federation: Federation, clock: HandClock) -> Node:
    """Alice's node before anybody warranted it."""
    return replace(federation.node("alice", clock=clock), warrant=HeldWarrant())


Answer = Callable[[Message], Message | bytes | None]


class OddCustodian(grpc.GenericRpcHandler):
    """Answers each message as it likes; None ends the call."""

    def __init__(self, answers: list[Answer]) -> None:
        self._answers = answers
        self.heard: list[Message] = []

    @override
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return grpc.stream_stream_rpc_method_handler(self._talk)

    async def _talk(
        self,
        requests: AsyncIterator[bytes],
        _: grpc.aio.ServicerContext[bytes, bytes],
    ) -> AsyncIterator[bytes]:
        for answer in self._answers:
            said = answer(self._read(await anext(requests)))
            if said is None:
                return
            yield said if isinstance(said, bytes) else encode_message(said)
        async for raw in requests:
            self._read(raw)

    def _read(self, raw: bytes) -> Message:
        self.heard.append(decode_message(raw, decode_from_node))
        return self.heard[-1]


@asynccontextmanager
async def odd_custodian(
    custodian: Custodian, *change: Answer, honest: int
) -> AsyncIterator[tuple[Address, OddCustodian]]:
    """Listens as the party's custodian: honest at first, and then as it likes."""
    identity = new_identity()
    side = CustodianMeeting(custodian, tls_key=identity.tls_spki)

    def challenge(message: Message) -> Message:
        assert isinstance(message, Hello)
        return side.challenge(message)

    def prove(message: Message) -> Message:
        assert isinstance(message, Possession)
        return side.prove(message)

    def warrant(message: Message) -> Message:
        assert isinstance(message, EvidenceProof)
        return side.warrant(message)

    answers: list[Answer] = [challenge, prove, warrant]
    handler = OddCustodian([*answers[:honest], *change])
    certificate = make_custodian_certificate(
        custodian.party,
        custodian.key,
        identity.tls_key,
        at=START,
        life=CERTIFICATE_LIFE,
    )
    [address] = free_addresses(1)
    server = grpc.aio.server(options=server_options(2 * MAX_MESSAGE_BYTES))
    server.add_generic_rpc_handlers((handler,))
    listen(server, address, enrolment_credentials(identity, certificate))
    await server.start()
    try:
        yield address, handler
    finally:
        await server.stop(0)


def test_the_odd_custodian_can_be_honest(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with (
            odd_custodian(custodian, honest=3) as (address, _),
            custodian_line(alice, address) as line,
        ):
            await line.renew()
            assert alice.warrant.current.terms.epoch == 1

    run(story())


@pytest.mark.parametrize("step", range(3))
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda _: None, "message-order"),
        (lambda _: b"", "message-malformed"),
        (lambda _: b"\xa1\xff", "message-malformed"),
        (lambda message: message, "message-malformed"),
        (lambda _: bytes(MAX_MESSAGE_BYTES + 1), "enrolment-broken"),
        (lambda _: Deposited(mark=MARK), "message-order"),
    ],
)
def test_a_custodian_that_breaks_the_protocol_gives_one_of_our_errors(
    run: Run, custodian: Custodian, alice: Node, step: int, answer: Answer, code: str
) -> None:
    async def story() -> None:
        async with (
            odd_custodian(custodian, answer, honest=step) as (address, _),
            custodian_line(alice, address) as line,
        ):
            with pytest.raises(ProtocolError) as caught:
                await line.renew()
            assert caught.value.code == code
            with pytest.raises(ProtocolError, match="no warrant"):
                _ = alice.warrant.current

    run(story())


def test_a_custodian_without_the_partys_key_hears_why_and_sees_no_evidence(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        counting = CountingPlatform(alice.platform)
        node = quoting(alice, counting)
        forged: dict[str, Any] = {"message": "custodian-proof", "signature": bytes(64)}
        async with (
            odd_custodian(custodian, lambda _: encode_message(forged), honest=1) as (
                address,
                odd,
            ),
            custodian_line(node, address) as line,
        ):
            with pytest.raises(VerificationError) as caught:
                await line.renew()
            assert caught.value.code == "custodian-signature"
            assert counting.quotes == 0
            refusal = odd.heard[-1]
            assert isinstance(refusal, Refusal)
            assert refusal.code == "custodian-signature"
            assert (refusal.expected, refusal.got) == ("", "")

    run(story())


def test_a_custodian_that_falls_silent_is_given_up(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        hurried = Limits(handshake_seconds=0.3)
        async with (
            odd_custodian(custodian, honest=1) as (address, _),
            custodian_line(alice, address, limits=hurried) as line,
        ):
            with pytest.raises(ProtocolError) as caught:
                await line.renew()
            assert caught.value.code == "enrolment-broken"
            assert "does not answer" in caught.value.what

    run(story())


def test_a_custodian_that_remembers_something_else_is_found_out(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with (
            odd_custodian(custodian, lambda _: Deposited(mark=LATER), honest=3) as (
                address,
                _,
            ),
            custodian_line(alice, address) as line,
        ):
            await line.renew()
            with pytest.raises(ProtocolError) as caught:
                await line.deposit(MARK)
            assert caught.value.code == "deposit-differs"
            assert line.mark is None

    run(story())


def test_a_session_that_fails_leaves_no_line_open(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with (
            odd_custodian(custodian, lambda _: b"", honest=1) as (address, _),
            custodian_line(alice, address) as line,
        ):
            with pytest.raises(ProtocolError):
                await line.renew()
            assert line._session is None

    run(story())


def test_a_session_that_is_cancelled_midway_leaves_no_line_open(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with (
            odd_custodian(custodian, honest=1) as (address, odd),
            custodian_line(alice, address) as line,
        ):
            meeting = asyncio.ensure_future(line.renew())
            await until(lambda: any(isinstance(it, Possession) for it in odd.heard))
            meeting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await meeting
            assert line._session is None

    run(story())
