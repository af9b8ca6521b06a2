from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc
import pytest
from tests.support.addresses import free_addresses
from tests.support.audit import RecordedDoor
from tests.support.enrolment_port import enrolment_port
from tests.support.federation_in_memory import START, Federation, quoting, rewarranted
from tests.support.meeting import CERTIFICATE_LIFE
from tests.support.running import Run
from typing_extensions import override

from cloister.errors import (
    CloisterError,
    PeerInTrouble,
    ProtocolError,
    RefusedByPeer,
    VerificationError,
)
from cloister.plan.site import Address
from cloister.ratls.admission import new_authority
from cloister.ratls.admission_table import AdmissionTable
from cloister.ratls.certificate import make_certificate
from cloister.ratls.challenge import (
    MAX_MESSAGE_BYTES,
    Admission,
    Answer,
    EvidenceProof,
    Hello,
    Refusal,
    decode_from_client,
    decode_message,
    encode_message,
)
from cloister.ratls.channels import enrolment_credentials, listen, server_options
from cloister.ratls.enrolling import enrol, renew
from cloister.ratls.limits import Limits
from cloister.ratls.node import Node
from cloister.ratls.server_enrolment import ServerEnrolment

Reply = Callable[[bytes], bytes | None]
Message = TypeVar("Message", Hello, Answer, EvidenceProof)


def test_a_client_enrols_over_a_real_port(run: Run, server: Node, alice: Node) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            enrolled = await enrol(alice, port.address)
            admittance = enrolled.admittance
            assert admittance.server.party == "aggregator"
            assert admittance.server.tls_key == server.identity.tls_spki
            [line] = port.table.admitted()
            assert admittance.expires_at == line.expires_at

    run(story())


def test_many_clients_enrol_at_once_and_each_gets_its_own(
    run: Run, server: Node, alice: Node, bob: Node
) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            done = await asyncio.gather(*(enrol(n, port.address) for n in (alice, bob)))
            assert len({it.admittance.certificate for it in done}) == 2
            assert len({it.server_certificate for it in done}) == 1

    run(story())


def test_a_client_enrols_again_and_again_under_one_key(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            first, second = [await enrol(alice, port.address) for _ in range(2)]
            assert first.admittance.certificate != second.admittance.certificate
            assert port.admitted() == [("alice", 1)]

    run(story())


def test_where_nobody_listens_the_remedy_is_to_start_the_server(
    run: Run, alice: Node
) -> None:
    [address] = free_addresses(1)
    with pytest.raises(ProtocolError) as caught:
        run(enrol(alice, address))
    assert caught.value.code == "server-unreachable"
    assert "Start the server" in caught.value.remedy


class OddServer(grpc.GenericRpcHandler):
    """An attested server that answers each message as it likes."""

    def __init__(self, replies: list[Reply]) -> None:
        self._replies = replies
        self.heard: list[bytes] = []

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
        for reply in self._replies:
            self.heard.append(await anext(requests))
            answer = reply(self.heard[-1])
            if answer is None:
                return
            yield answer
        async for message in requests:
            self.heard.append(message)


@asynccontextmanager
async def odd_server(
    node: Node, replies: list[Reply]
) -> AsyncIterator[tuple[Address, OddServer]]:
    certificate = make_certificate(
        node.identity, node.platform, at=START, life=CERTIFICATE_LIFE
    )
    [address] = free_addresses(1)
    handler = OddServer(replies)
    server = grpc.aio.server(options=server_options(2 * MAX_MESSAGE_BYTES))
    server.add_generic_rpc_handlers((handler,))
    listen(server, address, enrolment_credentials(node.identity, certificate))
    await server.start()
    try:
        yield address, handler
    finally:
        await server.stop(0)


def honest(node: Node) -> list[Reply]:
    """Returns the replies of a real server."""
    side = ServerEnrolment(
        node,
        authority=new_authority(at=START, life=CERTIFICATE_LIFE),
        table=AdmissionTable(node.clock),
        audit=RecordedDoor(),
    )

    def challenge(raw: bytes) -> bytes:
        return encode_message(side.challenge(_read(raw, Hello)))

    def prove(raw: bytes) -> bytes:
        return encode_message(side.prove(_read(raw, Answer)))

    def admit(raw: bytes) -> bytes:
        return encode_message(side.admit(_read(raw, EvidenceProof))[1])

    return [challenge, prove, admit]


def _read(raw: bytes, kind: type[Message]) -> Message:
    message: object = decode_message(raw, decode_from_client)
    assert isinstance(message, kind)
    return message


def test_the_odd_server_can_be_honest(run: Run, server: Node, alice: Node) -> None:
    async def story() -> None:
        async with odd_server(server, honest(server)) as (address, _):
            assert (await enrol(alice, address)).admittance.server.party == "aggregator"

    run(story())


@pytest.mark.parametrize("step", range(3))
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (lambda _: None, "message-order"),
        (lambda _: b"", "message-malformed"),
        (lambda _: b"\xa1\xff", "message-malformed"),
        (lambda raw: raw, "message-malformed"),
        (lambda _: bytes(MAX_MESSAGE_BYTES - 1), "message-malformed"),
        (lambda _: bytes(MAX_MESSAGE_BYTES + 1), "enrolment-broken"),
    ],
)
def test_a_server_that_breaks_the_protocol_gives_one_of_our_errors(
    run: Run, server: Node, alice: Node, step: int, reply: Reply, code: str
) -> None:
    async def story() -> None:
        replies = [*honest(server)[:step], reply]
        async with odd_server(server, replies) as (address, _):
            with pytest.raises(ProtocolError) as caught:
                await enrol(alice, address)
        assert caught.value.code == code

    run(story())


def test_a_message_out_of_order_is_named(run: Run, server: Node, alice: Node) -> None:
    async def story() -> None:
        admission = encode_message(
            Admission(certificate=b"", expires_at=0, last_round=1)
        )
        async with odd_server(server, [lambda _: admission]) as (address, odd):
            with pytest.raises(ProtocolError) as caught:
                await enrol(alice, address)
        assert (caught.value.expected, caught.value.got) == ("Challenge", "Admission")
        # It was told why, before the client hung up.
        refusal = decode_message(odd.heard[-1], decode_from_client)
        assert isinstance(refusal, Refusal)
        assert refusal.code == "message-order"

    run(story())


def test_a_servers_refusal_reaches_the_client_as_its_words(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        words = encode_message(Refusal(code="full", what="no place\nleft"))
        async with odd_server(server, [lambda _: words]) as (address, _):
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(alice, address)
        assert caught.value.code == "full"
        assert str(caught.value) == "the server refused this node: no place left"

    run(story())


def test_a_server_that_falls_silent_is_given_up(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        # The honest first reply, and then it only listens.
        async with odd_server(server, honest(server)[:1]) as (address, _):
            with pytest.raises(ProtocolError) as caught:
                await enrol(alice, address, limits=Limits(handshake_seconds=0.2))
        assert caught.value.code == "enrolment-broken"
        assert "DEADLINE_EXCEEDED" in caught.value.got

    run(story())


def test_a_server_whose_warrant_is_refused_hears_a_code_and_a_line(
    run: Run, federation: Federation, server: Node, alice: Node
) -> None:
    async def story() -> None:
        expired = rewarranted(federation, server, issued_at=0, expires_at=1)
        async with enrolment_port(expired) as port:
            with pytest.raises(CloisterError) as caught:
                await enrol(alice, port.address)
            assert caught.value.code == "warrant-expired"
            [line] = port.log.named("refused-by-peer")
            assert line["code"] == "warrant-expired"
            assert line["reason"] == (
                "the client refused this node: the warrant is not in force"
            )
            assert port.admitted() == []

    run(story())


def test_a_server_whose_certificate_is_refused_hears_a_code_and_a_line(
    run: Run, federation: Federation, server: Node, alice: Node
) -> None:
    async def story() -> None:
        posing = quoting(server, federation.platform("bob"))
        async with enrolment_port(posing) as port:
            with pytest.raises(CloisterError) as caught:
                await enrol(alice, port.address)
            assert caught.value.code == "appraisal-measurement"
            assert caught.value.expected
            [line] = port.log.named("refused-by-peer")
            assert line["code"] == "appraisal-measurement"
            assert caught.value.expected[:40] not in port.log.text()
            assert caught.value.got[:40] not in port.log.text()

    run(story())


def test_an_admission_is_renewed_by_the_same_handshake(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            first = await enrol(alice, port.address)
            renewed = await renew(alice, port.address)
            assert renewed.admittance.server.node == first.admittance.server.node
            assert renewed.admittance.certificate != first.admittance.certificate
            assert port.admitted() == [("alice", 1)]

    run(story())


def test_who_answers_a_renewal_with_a_bad_certificate_is_only_not_met(
    run: Run, federation: Federation, server: Node, alice: Node
) -> None:
    """At the first enrolment it ends the node, later it must not."""

    async def story() -> None:
        posing = quoting(server, federation.platform("bob"))
        async with enrolment_port(posing) as port:
            with pytest.raises(VerificationError) as ends:
                await enrol(alice, port.address)
            with pytest.raises(ProtocolError) as passes:
                await renew(alice, port.address)
            assert passes.value.code == ends.value.code == "appraisal-measurement"
            assert passes.value.what.startswith("who answers is not the server")
            assert port.admitted() == []

    run(story())


def test_a_server_that_refuses_a_renewal_ends_the_node(
    run: Run, federation: Federation, server: Node, alice: Node
) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            await enrol(alice, port.address)
            await enrol(federation.node("alice", epoch=2), port.address)
            with pytest.raises(RefusedByPeer) as caught:
                await renew(alice, port.address)
            assert caught.value.code == "epoch-old"

    run(story())


def test_a_server_in_trouble_is_not_told_that_it_is_refused(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        words = encode_message(Refusal(code="pcs-unreachable", what="no", trouble=True))
        async with odd_server(server, [lambda _: words]) as (address, odd):
            with pytest.raises(PeerInTrouble) as caught:
                await enrol(alice, address)
        assert caught.value.code == "pcs-unreachable"
        assert len(odd.heard) == 1  # the hello alone

    run(story())
