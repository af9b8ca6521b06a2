"""Before its party's warrant was verified, a client hears a code and one line.

Nothing in them is the server's: no hash, no run, no party that the client did not name
itself, no measurement, no file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.enrolment_port import EnrolmentPort, enrolment_port, raw_call
from tests.support.federation_in_memory import (
    Federation,
    HandClock,
    quoting,
    rewarranted,
    warranted,
)
from tests.support.meeting import Meeting
from tests.support.plan_tree import measurement_of
from tests.support.running import Run

from cloister.attestation.reports import Tee
from cloister.errors import PlatformError, RefusedByPeer
from cloister.plan.plan import Plan, plan_hash
from cloister.ratls.challenge import (
    Answer,
    Challenge,
    Hello,
    Message,
    Refusal,
    decode_from_server,
    decode_message,
    encode_message,
)
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.enrolling import enrol
from cloister.ratls.identity import new_identity
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node
from cloister.ratls.warrant import sign_warrant

# Where the first line of a refusal names what is not the client's own.
NOTHING = ("", "")


def secrets_of(plan: Plan) -> list[str]:
    """Returns what nobody may learn who does not know the plan."""
    policies = [plan.policy_for(role) for role in ("server", "worker")]
    measured = [measurement_of(role) for role in ("server", "worker")]
    return [
        plan.run_id,
        plan.plan.name,
        plan_hash(plan).hex(),
        plan_hash(plan).hex()[:16],
        *(party.name for party in (plan.server, *plan.workers)),
        *(party.key for party in (plan.server, *plan.workers)),
        *(policy.root for policy in policies),
        *(it.mr_enclave.hex() for it in measured),
        *(it.mrtd.hex() for it in measured),
    ]


def check_bare(refusal: Refusal, plan: Plan) -> None:
    assert (refusal.expected, refusal.got) == NOTHING
    for secret in secrets_of(plan):
        assert secret not in refusal.what
        assert secret not in refusal.code


async def heard(port: EnrolmentPort, *messages: bytes) -> Refusal:
    """Says so much and returns the refusal that must come after it."""
    async with raw_call(port.address) as call:
        for message in messages:
            await call.write(message)
        await call.done_writing()
        while isinstance(raw := await call.read(), bytes):
            reply: Message = decode_message(raw, decode_from_server)
            if isinstance(reply, Refusal):
                return reply
    pytest.fail("nobody was refused")


HELLOS: list[dict[str, Any]] = [
    {"version": 1},
    {"plan_hash": bytes(32)},
    {"plan_hash": bytes(32), "run_id": "x/y", "party": "mallory"},
    {"run_id": "x/y"},
    {"party": "mallory"},
    {"role": "server", "party": "mallory"},
    {"tls_key": bytes(91)},
]


@pytest.mark.parametrize("change", HELLOS, ids=" ".join)
def test_a_hello_from_elsewhere_is_answered_without_a_word_about_the_run(
    run: Run, server: Node, alice: Node, change: dict[str, Any]
) -> None:
    async def story() -> None:
        hello: Hello = ClientEnrolment(alice).hello()
        async with enrolment_port(server) as port:
            raw = encode_message(msgspec.structs.replace(hello, **change))
            check_bare(await heard(port, raw), server.plan)
            # The log on the server's own side says what was wanted.
            [line] = port.log.named("peer-refused")
            assert len(str(line["reason"])) > len(str(line["code"]))

    run(story())


@pytest.mark.parametrize("raw", [b"", b"\xc1", bytes(65_536), b"\xa1\xff"])
def test_nonsense_is_answered_without_a_word_about_the_run(
    run: Run, server: Node, raw: bytes
) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            check_bare(await heard(port, raw), server.plan)

    run(story())


def no_key(_: Federation, node: Node) -> Node:
    """A thief with everything but the key that the warrant is for."""
    return replace(node, identity=new_identity())


def forged(_: Federation, node: Node) -> Node:
    terms = node.warrant.current.terms
    return warranted(node, sign_warrant(terms, Ed25519PrivateKey.generate()))


def elsewhere(name: str, value: object) -> Callable[[Federation, Node], Node]:
    return lambda federation, node: rewarranted(federation, node, **{name: value})


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (no_key, "warrant-foreign"),
        (forged, "warrant-signature"),
        (elsewhere("run_id", "x/y"), "warrant-foreign"),
        (elsewhere("plan_hash", bytes(32)), "warrant-foreign"),
        (elsewhere("party", "mallory"), "warrant-foreign"),
        (elsewhere("role", "server"), "warrant-foreign"),
        (elsewhere("expires_at", 0), "warrant-malformed"),
    ],
)
def test_a_warrant_that_does_not_hold_is_answered_without_a_word_about_the_run(
    run: Run,
    federation: Federation,
    server: Node,
    alice: Node,
    spoil: Callable[[Federation, Node], Node],
    code: str,
) -> None:
    async def story() -> None:
        async with enrolment_port(server) as port:
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(spoil(federation, alice), port.address)
            error = caught.value
            assert error.code == code
            check_bare(Refusal(code=error.code, what=error.what), server.plan)
            assert (error.expected, error.got) == NOTHING

    run(story())


def test_a_signature_that_does_not_hold_is_answered_without_a_name(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        client = ClientEnrolment(alice)
        answer = Answer(warrant=alice.warrant.current, signature=b"")
        async with enrolment_port(server) as port:
            refusal = await heard(
                port, encode_message(client.hello()), encode_message(answer)
            )
            assert refusal.code == "transcript-signature"
            check_bare(refusal, server.plan)

    run(story())


def test_an_older_node_is_answered_without_a_name(
    run: Run, federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    async def story() -> None:
        newer = federation.node("alice", clock=clock, epoch=2)
        async with enrolment_port(server) as port:
            await enrol(newer, port.address)
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(alice, port.address)
            error = caught.value
            assert error.code == "epoch-old"
            assert (error.expected, error.got) == NOTHING
            check_bare(Refusal(code=error.code, what=error.what), server.plan)
            key = newer.identity.tls_spki
            assert hashlib.sha256(key).hexdigest()[:16] not in error.what

    run(story())


class BrokenPlatform:
    """A server's machine that can quote no more; its error names a device."""

    tee: Tee = "sgx"
    name = "broken"
    simulated = True

    def __init__(self, kept: bytes) -> None:
        self._kept: bytes | None = kept

    def quote(self, report_data: bytes) -> bytes:
        # One quote is needed for the port's certificate.
        if self._kept is not None and report_data[32:] == bytes(32):
            return self._kept
        raise PlatformError("/dev/tdx_guest does not answer", code="quote-failed")


def test_a_client_never_hears_of_the_servers_own_machine(
    run: Run, server: Node, alice: Node
) -> None:
    async def story() -> None:
        meeting = Meeting(server, alice)
        pinned = meeting.client.pin(meeting.certificate())
        broken = quoting(server, BrokenPlatform(pinned.unverified_quote))
        async with enrolment_port(broken) as port:
            client = ClientEnrolment(alice)
            client.pin(await fetch_unverified_certificate(port.address))
            async with raw_call(port.address) as call:
                await call.write(encode_message(client.hello()))
                raw = await call.read()
                assert isinstance(raw, bytes)
                challenge: Message = decode_message(raw, decode_from_server)
                assert isinstance(challenge, Challenge)
                await call.write(encode_message(client.answer(challenge)))
                raw = await call.read()
                assert isinstance(raw, bytes)
            refusal: Message = decode_message(raw, decode_from_server)
            assert refusal == Refusal(
                code="quote-failed",
                what="it cannot go on; its own log says why",
                trouble=True,
            )
            [line] = port.log.named("peer-refused")
            assert "/dev/tdx_guest" in str(line["reason"])

    run(story())
