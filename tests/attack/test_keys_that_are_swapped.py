"""Somebody is attested with one key and comes with another."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

import grpc
import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.enrolment_port import raw_call
from tests.support.federation_in_memory import (
    START,
    Federation,
    quoting,
    rewarranted,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.meeting import Meeting, transcript_of
from tests.support.open_server import OpenServer, admitted_channel, open_server
from tests.support.posing import LIFE
from tests.support.raw_messages import message_in, refusal_in
from tests.support.relay import first, relay, tls_as, tls_without_its_key
from tests.support.running import Run, until
from tests.support.training_calls import begin_round, model_of, receive

from cloister.errors import ProtocolError, VerificationError
from cloister.plan.site import Address
from cloister.ratls.certificate import make_certificate
from cloister.ratls.challenge import (
    Challenge,
    ServerProof,
    decode_from_server,
    encode_message,
)
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.enrolling import enrol
from cloister.ratls.identity import new_identity
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node
from cloister.ratls.transcript import Transcript

LOG = ["logs/aggregator.jsonl"]
SETTINGS = 4  # what a server says first in HTTP/2, once TLS is done


async def greeting_at(address: Address, context: ssl.SSLContext) -> bytes:
    """Returns how a server greets a client after TLS; nothing if it hangs up."""
    reader, writer = await asyncio.open_connection(
        address.host, address.port, ssl=context
    )
    try:
        return await reader.read(9)
    except OSError:  # ssl.SSLError above all
        return b""
    finally:
        writer.transport.abort()


def test_an_admission_certificate_shown_with_another_key_does_not_pass_tls(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path / "run") as port:
            enrolled = await enrol(alice, port.enrolment)
            shown = enrolled.admittance.certificate
            owner = tls_as(alice.identity, shown, tmp_path, client=True)
            thief = tls_without_its_key(shown, tmp_path, client=True)
            assert (await greeting_at(port.training, owner))[3] == SETTINGS
            assert await greeting_at(port.training, thief) == b""
            assert port.admitted() == [("alice", 1)]
            assert port.refusals() == []
            assert port.files() == LOG

    run(story())


def test_a_certificate_of_a_second_attested_key_is_no_admission(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path
) -> None:
    """Alice's node makes a new key and evidence for it, after it was admitted."""

    async def story() -> None:
        async with open_server(server, tmp_path / "run") as port:
            enrolled = await enrol(alice, port.enrolment)
            other = replace(alice, identity=new_identity())
            own = make_certificate(other.identity, alice.platform, at=START, life=LIFE)
            admittance = replace(enrolled.admittance, certificate=own)
            swapped = replace(enrolled, admittance=admittance)
            async with admitted_channel(port, other, enrolled=swapped) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await model_of(receive(port, channel))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert port.coordinator._attendance._joined == set()
            # Under her own key, she is none the worse for it.
            async with (
                admitted_channel(port, alice, enrolled=enrolled) as channel,
                admitted_channel(port, bob) as others,
            ):
                await begin_round(port, channel, others)
            [peer, _] = port.ports.table.parties()
            assert peer.tls_key == alice.identity.tls_spki
            assert port.files() == LOG

    run(story())


@pytest.mark.parametrize(
    ("named", "signer", "code"),
    [
        ("second", "first", "transcript-signature"),
        ("first", "second", "transcript-signature"),
        ("second", "second", "warrant-foreign"),
    ],
)
def test_a_hello_for_another_key_than_the_warranted_one_is_refused_before_any_quote(
    run: Run, federation: Federation, tmp_path: Path, named: str, signer: str, code: str
) -> None:
    async def story() -> None:
        server, alice = federation.node("aggregator"), federation.node("alice")
        keys = {"first": alice.identity, "second": new_identity()}
        counting = CountingPlatform(server.platform)
        async with open_server(quoting(server, counting), tmp_path) as port:
            made = counting.quotes
            node = replace(alice, identity=keys[named])
            client = ClientEnrolment(node)
            client.pin(await fetch_unverified_certificate(port.enrolment))
            async with raw_call(port.enrolment) as call:
                await call.write(encode_message(client.hello()))
                challenge = await message_in(call, decode_from_server, Challenge)
                answer = client.answer(challenge)
                signature = keys[signer].tls_key.sign(
                    transcript_of(client).possession_bytes(), ec.ECDSA(hashes.SHA256())
                )
                forged = msgspec.structs.replace(answer, signature=signature)
                await call.write(encode_message(forged))
                refusal = await refusal_in(call, decode_from_server)
            assert refusal.code == code
            assert counting.quotes == made
            assert port.admitted() == []
            assert port.refusals() == [code]
            await enrol(federation.node("bob"), port.enrolment)
            assert port.admitted() == [("bob", 1)]

    run(story())


def test_evidence_for_one_key_does_not_admit_the_other_of_the_same_node(
    federation: Federation, server: Node, alice: Node
) -> None:
    """Both keys are warranted, and the platform is genuine: the quote is not for it."""
    second = rewarranted(
        federation,
        replace(alice, identity=new_identity()),
        epoch=2,
        tls_key=(identity := new_identity()).tls_spki,
    )
    meeting = Meeting(server, replace(second, identity=identity))
    meeting.server_proof()
    truly = transcript_of(meeting.client)
    told: Transcript = replace(truly, client_key=alice.identity.tls_spki)
    proof = meeting.client_node.prover.prove(told)
    with pytest.raises(VerificationError) as caught:
        meeting.server.admit(proof)
    assert caught.value.code == "report-data"
    assert meeting.table.parties() == ()


async def end_of(port: OpenServer, channel: grpc.aio.Channel) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await model_of(receive(port, channel))
    return caught.value.code()


def test_a_server_that_comes_back_with_another_key_is_met_anew_or_not_at_all(
    run: Run, federation: Federation, server: Node, alice: Node, tmp_path: Path
) -> None:
    """The same address, the same code, the same party: the key was pinned."""

    async def story() -> None:
        async with (
            open_server(server, tmp_path / "first") as port,
            open_server(
                federation.node("aggregator", epoch=2), tmp_path / "second"
            ) as newer,
            # As if the newer server had taken over the address.
            relay(first(port.training, then=newer.training)) as between,
        ):
            diverted = replace(port, training=between.address)
            async with admitted_channel(diverted, alice) as channel:
                call = receive(port, channel)
                await until(lambda: port.coordinator._attendance._joined == {"alice"})
                await port.ports._training.stop(0)
                with pytest.raises(grpc.aio.AioRpcError):
                    await model_of(call)
                assert await end_of(port, channel) is grpc.StatusCode.UNAVAILABLE
            assert newer.coordinator._attendance._joined == set()
            assert newer.admitted() == []

            await enrol(alice, newer.enrolment)
            with pytest.raises(VerificationError) as caught:
                await enrol(alice, port.enrolment)
            assert caught.value.code == "epoch-old"
            assert port.refusals()[-1] == "epoch-old"
            assert newer.admitted() == [("alice", 1)]
            assert newer.refusals() == []
            assert newer.files() == LOG

    run(story())


def test_a_server_that_proves_another_key_than_the_pinned_one_gets_no_evidence(
    federation: Federation, server: Node, alice: Node
) -> None:
    """It showed one key in TLS, and proves one that is as good: a second server's."""
    counting = CountingPlatform(alice.platform)
    other = federation.node("aggregator")
    meeting = Meeting(server, quoting(alice, counting))
    meeting.answer()
    told = replace(transcript_of(meeting.server), server_key=other.identity.tls_spki)
    quote = other.platform.quote(told.server_report_data())
    for warrant, code in (
        (other.warrant.current, "warrant-foreign"),
        (server.warrant.current, "report-data"),
    ):
        with pytest.raises((VerificationError, ProtocolError)) as caught:
            meeting.client.prove(ServerProof(warrant=warrant, quote=quote))
        assert caught.value.code == code
    assert counting.quotes == 0
