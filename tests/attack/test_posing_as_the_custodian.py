"""Somebody in the place of a party's custodian, with much that a custodian has.

A custodian learns what a node runs, and its warrants are what counts. So the node
proves nothing before the party's key answered for this very session.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.custodians import Custodians
from tests.support.enrolment_port import raw_call
from tests.support.federation_in_memory import START, Federation
from tests.support.posing import custodian_certificate, posing_port
from tests.support.raw_messages import message_in
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run
from tests.support.unwarranted import code_at, epochs_of, goes_on, unwarranted
from typing_extensions import override

from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    decode_from_custodian,
    decode_from_node,
)
from cloister.custody.node_meeting import NodeMeeting
from cloister.custody.service import METHOD, CustodyService
from cloister.plan.site import Address
from cloister.ratls.challenge import Hello, decode_message, encode_message
from cloister.ratls.exchange import Context, Requests
from cloister.ratls.identity import new_identity
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node


@pytest.fixture
def custodians(federation: Federation, tmp_path: Path) -> Custodians:
    return Custodians(
        federation=federation, directory=tmp_path / "custody", plan=federation.plan
    )


def test_the_custodian_of_another_party_is_not_spoken_to(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    """The host's site file leads alice's node to bob's custodian, or the server's."""

    async def story() -> None:
        for other in ("bob", "aggregator"):
            node, counting = unwarranted(federation, "alice")
            async with custodians.office(other) as office:
                code = await code_at(node, office.address)
                assert office.log.named("node-refused") == []
                assert office.log.named("warrant-signed") == []
            assert code == "custodian-certificate-signature"
            assert counting.quotes == 0
            assert epochs_of(custodians, other) == []

    run(story())


class Oracle(grpc.GenericRpcHandler):
    """Has a custodian's TLS key of former days, and asks the real one for the rest.

    Whoever holds some TLS key gets the party's signature over a session of his own. It
    is handed on to a node, in the place of one over that node's session.

    Args:
        thief: A node of the same plan, which the real custodian answers.
        real: Where that one listens.
    """

    def __init__(self, thief: Node, real: Address) -> None:
        self._thief = thief
        self._real = real
        self.hellos: list[Hello] = []
        self.proofs = 0

    @override
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.stream_stream_rpc_method_handler(self._meet)

    async def _meet(self, requests: Requests, context: Context) -> None:
        meeting = NodeMeeting(self._thief)
        meeting.pin(await fetch_unverified_certificate(self._real))
        async with raw_call(self._real, METHOD) as call:
            messages = aiter(requests)
            self.hellos.append(decode_message(await anext(messages), decode_from_node))
            await call.write(encode_message(meeting.hello()))
            challenge = await message_in(
                call, decode_from_custodian, CustodianChallenge
            )
            await context.write(encode_message(challenge))
            await anext(messages)  # the node's possession, of no use here
            await call.write(encode_message(meeting.possess(challenge)))
            proof = await message_in(call, decode_from_custodian, CustodianProof)
            self.proofs += 1
            await context.write(encode_message(proof))
            async for _ in messages:  # what the node says to that
                pass


def test_a_signature_of_the_party_over_another_session_gets_no_evidence(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    async def story() -> None:
        node, counting = unwarranted(federation, "alice")
        thief, stolen = unwarranted(federation, "alice")
        identity = new_identity()
        certificate = custodian_certificate(
            identity, "alice", federation.keys["alice"], at=START
        )
        async with custodians.office("alice") as office:
            oracle = Oracle(thief, office.address)
            async with posing_port(identity, certificate, oracle) as address:
                assert await code_at(node, address) == "custodian-signature"
            # The party's key did sign something, and it was not this.
            assert oracle.proofs == 1
            assert [it.tls_key for it in oracle.hellos] == [node.identity.tls_spki]
            assert (counting.quotes, stolen.quotes) == (0, 0)
            assert epochs_of(custodians, "alice") == []
            await goes_on(office, federation)

    run(story())


@pytest.mark.parametrize("signer", ["bob", None])
def test_a_stolen_tls_key_of_a_custodian_is_not_enough(
    run: Run,
    federation: Federation,
    custodians: Custodians,
    signer: str | None,
) -> None:
    """The certificate is the party's own, and good for a year; its key is stolen."""

    async def story() -> None:
        node, counting = unwarranted(federation, "alice")
        identity = new_identity()
        certificate = custodian_certificate(
            identity, "alice", federation.keys["alice"], at=START
        )
        key = federation.keys[signer] if signer else Ed25519PrivateKey.generate()
        log = RecordedLog()
        async with custodians.office("alice") as office:
            posing = CustodyService(
                replace(office.custodian, key=key),
                tls_key=identity.tls_spki,
                log=log.logger(),
            )
            async with posing_port(identity, certificate, posing) as address:
                assert await code_at(node, address) == "custodian-signature"
            assert [it["code"] for it in log.named("refused-by-peer")] == [
                "custodian-signature"
            ]
            assert log.named("warrant-signed") == []
            assert counting.quotes == 0
            assert epochs_of(custodians, "alice") == []
            await goes_on(office, federation)

    run(story())
