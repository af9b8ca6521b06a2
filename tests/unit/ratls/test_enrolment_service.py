from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import grpc
import pytest
from tests.support.addresses import free_addresses
from tests.support.federation_in_memory import START, Federation, rewarranted
from tests.support.meeting import CERTIFICATE_LIFE
from tests.support.open_server import open_server
from tests.support.running import Run
from typing_extensions import override

from cloister.errors import CloisterError, ProtocolError, RefusedByPeer
from cloister.plan.site import Address
from cloister.ratls import enrolment_service
from cloister.ratls.admission import AdmissionTable, new_authority
from cloister.ratls.certificate import make_certificate
from cloister.ratls.challenge import (
    MAX_MESSAGE_BYTES,
    Admission,
    Answer,
    ClientProof,
    Hello,
    Refusal,
    decode_from_client,
    decode_message,
    encode_message,
)
from cloister.ratls.channels import (
    enrolment_credentials,
    listen,
    open_channel,
    server_options,
)
from cloister.ratls.enrolment import ServerEnrolment
from cloister.ratls.enrolment_service import METHOD, Call, describe_peer, enrol
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node

Reply = Callable[[bytes], bytes | None]
UnaryUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
Message = TypeVar("Message", Hello, Answer, ClientProof)


def test_a_client_enrols_over_a_real_port(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            enrolled = await enrol(alice, port.enrolment)
            assert enrolled.server.party == "aggregator"
            assert enrolled.server.tls_key == server.identity.tls_spki
            assert port.admitted() == [("alice", 1)]
            [line] = port.events("peer-admitted")
            assert line.items() >= describe_peer(port.ports.table.parties()[0]).items()
            assert port.refusals() == []
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


def test_many_clients_enrol_at_once_and_each_is_admitted(
    run: Run, federation: Federation, server: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            parties = ["alice", "bob"]
            nodes = [federation.node(party) for party in parties]
            done = await asyncio.gather(*(enrol(n, port.enrolment) for n in nodes))
            assert len({it.admission_certificate for it in done}) == len(parties)
            assert sorted(port.admitted()) == [("alice", 1), ("bob", 1)]

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
    )

    def challenge(raw: bytes) -> bytes:
        return encode_message(side.challenge(_read(raw, Hello)))

    def prove(raw: bytes) -> bytes:
        return encode_message(side.prove(_read(raw, Answer)))

    def admit(raw: bytes) -> bytes:
        return encode_message(side.admit(_read(raw, ClientProof))[1])

    return [challenge, prove, admit]


def _read(raw: bytes, kind: type[Message]) -> Message:
    message: object = decode_message(raw, decode_from_client)
    assert isinstance(message, kind)
    return message


def test_the_odd_server_can_be_honest(run: Run, server: Node, alice: Node) -> None:
    async def story() -> None:
        async with odd_server(server, honest(server)) as (address, _):
            assert (await enrol(alice, address)).server.party == "aggregator"

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
        admission = encode_message(Admission(certificate=b""))
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
    run: Run, server: Node, alice: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment_service, "HANDSHAKE_SECONDS", 0.1)

    async def story() -> None:
        # The honest first reply, and then it only listens.
        async with odd_server(server, honest(server)[:1]) as (address, _):
            with pytest.raises(ProtocolError) as caught:
                await enrol(alice, address)
        assert caught.value.code == "enrolment-broken"
        assert "DEADLINE_EXCEEDED" in caught.value.got

    run(story())


def test_a_client_that_falls_silent_is_given_up_and_logged(
    run: Run, server: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment_service, "HANDSHAKE_SECONDS", 0.1)

    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            async with raw_call(port.enrolment) as call:
                assert await call.read() is grpc.aio.EOF
            assert len(port.events("enrolment-timeout")) == 1
            assert port.admitted() == []

    run(story())


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "message-malformed"),
        (b"\xa1\xff", "message-malformed"),
        (b"\x81\xa7message\xa5\xff\xff\xff\xff\xff", "message-malformed"),
        (bytes(MAX_MESSAGE_BYTES), "message-malformed"),
        (encode_message(Admission(certificate=b"")), "message-malformed"),
    ],
)
def test_a_client_that_talks_nonsense_is_told_so_and_logged(
    run: Run, server: Node, tmp_path: Path, raw: bytes, code: str
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            async with raw_call(port.enrolment) as call:
                await call.write(raw)
                answer = await call.read()
                assert isinstance(answer, bytes)
                assert code.encode() in answer
            assert port.refusals() == [code]
            assert port.admitted() == []

    run(story())


def test_a_client_that_hangs_up_at_once_is_logged_and_forgotten(
    run: Run, server: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            async with raw_call(port.enrolment) as call:
                await call.done_writing()
                await call.read()
            assert port.refusals() == ["message-order"]
            assert port.admitted() == []

    run(story())


def test_no_other_method_exists_on_the_enrolment_port(
    run: Run, server: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path) as port,
            raw_channel(port.enrolment) as channel,
        ):
            for method in ("/cloister.Training/Receive", METHOD + "s", "/"):
                call: UnaryUnary = channel.unary_unary(method)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(story())


def test_both_sides_say_why_a_warrant_is_refused(
    run: Run, federation: Federation, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        expired = rewarranted(federation, alice, expires_at=1)
        async with open_server(server, tmp_path) as port:
            with pytest.raises(RefusedByPeer, match="not in force"):
                await enrol(expired, port.enrolment)
            assert port.refusals() == ["warrant-expired"]
            assert port.admitted() == []

    run(story())


def test_a_server_without_warrant_hears_why_it_is_refused(
    run: Run, federation: Federation, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        expired = rewarranted(federation, server, expires_at=1)
        async with open_server(expired, tmp_path) as port:
            with pytest.raises(CloisterError) as caught:
                await enrol(alice, port.enrolment)
            assert caught.value.code == "warrant-expired"
            [line] = port.events("refused-by-peer")
            assert line["code"] == "warrant-expired"
            assert "not in force" in str(line["reason"])
            assert port.admitted() == []

    run(story())


def test_a_server_whose_certificate_is_refused_hears_why(
    run: Run, federation: Federation, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        worker = federation.platform("bob")
        posing = replace(federation.node("aggregator"), platform=worker)
        async with open_server(posing, tmp_path) as port:
            with pytest.raises(CloisterError) as caught:
                await enrol(alice, port.enrolment)
            assert caught.value.code == "appraisal-measurement"
            assert port.refusals() == ["appraisal-measurement"]

    run(story())


@asynccontextmanager
async def raw_channel(address: Address) -> AsyncIterator[grpc.aio.Channel]:
    """Opens a channel as anybody can who believes the server's certificate."""
    channel = open_channel(
        address,
        pinned_certificate=await fetch_unverified_certificate(address),
        max_message_bytes=4 * MAX_MESSAGE_BYTES,
    )
    async with channel:
        yield channel


@asynccontextmanager
async def raw_call(address: Address) -> AsyncIterator[Call]:
    async with raw_channel(address) as channel:
        yield channel.stream_stream(METHOD)()
