"""Somebody sits between a worker and its server, on either port.

Who passes on bytes reads nothing; who ends TLS himself is spoken to by nobody.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from tests.support.federation_in_memory import START, Federation, quoting
from tests.support.hostile_platforms import CountingPlatform, FixedPlatform
from tests.support.open_server import OpenServer, admitted_channel, open_server
from tests.support.posing import LIFE, plain_certificate
from tests.support.relay import (
    Relay,
    always,
    first,
    relay,
    tls_as,
    tls_without_its_key,
)
from tests.support.running import Run
from tests.support.training_calls import begin_round, model_of, receive

from cloister.errors import ProtocolError, VerificationError
from cloister.plan.plan import plan_hash
from cloister.ratls.certificate import make_certificate, parse_certificate
from cloister.ratls.enrolling import enrol
from cloister.ratls.identity import new_identity
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node

LOG = ["logs/aggregator.jsonl"]
Make = Callable[[OpenServer, Path], ssl.SSLContext]


def secrets_of(node: Node) -> list[bytes]:
    """Returns what only the two ends are to read."""
    return [
        node.party.encode(),
        node.plan.run_id.encode(),
        plan_hash(node.plan),
        node.identity.tls_spki,
        node.identity.encryption_public,
        node.warrant.current.signature,
    ]


def read_nothing(between: Relay, node: Node) -> None:
    """Checks that a relay read neither words of the protocol nor the node's own."""
    heard = between.heard
    for word in (b"cloister.Enrolment", b"cloister.Training", *secrets_of(node)):
        assert word not in heard


async def trains_undisturbed(port: OpenServer, node: Node) -> None:
    """Checks that nobody came in; another worker is admitted as ever."""
    assert port.admitted() == []
    await enrol(node, port.enrolment)
    assert port.admitted() == [(node.party, 1)]
    assert port.coordinator.traffic.sent == 0
    assert port.files() == LOG


def test_a_relay_that_passes_on_bytes_reads_none_of_them(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            open_server(server, tmp_path) as port,
            relay(always(port.enrolment)) as at_enrolment,
            relay(always(port.training)) as at_training,
        ):
            diverted = replace(
                port, enrolment=at_enrolment.address, training=at_training.address
            )
            async with (
                admitted_channel(diverted, alice) as channel,
                admitted_channel(port, bob) as other,
            ):
                await begin_round(port, channel, other)
            # It passed on everything: the handshake, the evidence and the model.
            assert port.admitted() == [("alice", 1), ("bob", 1)]
            assert len(at_enrolment.heard) > 20_000
            assert len(at_training.heard) > port.coordinator.model.layout.size_bytes
            for between in (at_enrolment, at_training):
                read_nothing(between, alice)
            assert port.coordinator.model.data.tobytes() not in at_training.heard
            assert port.refusals() == []
            assert port.files() == LOG

    run(story())


def of_its_own_making(_: OpenServer, directory: Path) -> ssl.SSLContext:
    identity = new_identity()
    return tls_as(identity, plain_certificate(identity, at=START), directory)


def with_the_servers_evidence(port: OpenServer, directory: Path) -> ssl.SSLContext:
    """Takes the genuine server's evidence over into a certificate for another key."""
    identity = new_identity()
    node = port.node
    genuine = make_certificate(node.identity, node.platform, at=START, life=LIFE)
    kept = parse_certificate(genuine, at=START).unverified_quote
    platform = FixedPlatform(node.platform, kept=kept)
    forged = make_certificate(identity, platform, at=START, life=LIFE)
    return tls_as(identity, forged, directory)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (of_its_own_making, "certificate-evidence"),
        (with_the_servers_evidence, "report-data"),
    ],
)
def test_a_relay_that_ends_tls_at_the_enrolment_port_hears_only_that_it_is_refused(
    run: Run, federation: Federation, tmp_path: Path, make: Make, code: str
) -> None:
    async def story() -> None:
        server, alice = federation.node("aggregator"), federation.node("alice")
        counting = CountingPlatform(alice.platform)
        async with open_server(server, tmp_path / "run") as port:
            shown = make(port, tmp_path)
            async with relay(always(port.enrolment), shown=shown) as between:
                with pytest.raises(VerificationError) as caught:
                    await enrol(quoting(alice, counting), between.address)
                assert caught.value.code == code
            # It reads every byte, and there is nothing in them but the refusal.
            assert b"cloister.Enrolment" in between.heard
            assert code.encode() in between.heard
            for secret in secrets_of(alice):
                assert secret not in between.heard
            assert counting.quotes == 0
            # It was passed on, so the server's own log shows that somebody is there.
            assert port.refusals() == [code]
            await trains_undisturbed(port, federation.node("bob"))

    run(story())


def test_a_relay_with_the_servers_certificate_and_another_key_is_not_heard(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        counting = CountingPlatform(alice.platform)
        async with open_server(server, tmp_path / "run") as port:
            genuine = await fetch_unverified_certificate(port.enrolment)
            shown = tls_without_its_key(genuine, tmp_path)
            async with relay(always(port.enrolment), shown=shown) as between:
                with pytest.raises(ProtocolError) as caught:
                    await enrol(quoting(alice, counting), between.address)
            # Whoever cannot sign for the key is nobody: as if no server were there.
            assert caught.value.code == "server-unreachable"
            assert between.passages == []
            assert counting.quotes == 0
            assert port.refusals() == []
            await trains_undisturbed(port, bob)

    run(story())


def test_a_relay_that_was_honest_while_the_certificate_was_read_is_not_heard(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path
) -> None:
    """The certificate is read on one connection, and spoken to on another."""

    async def story() -> None:
        counting = CountingPlatform(alice.platform)
        async with open_server(server, tmp_path / "run") as port:
            genuine = await fetch_unverified_certificate(port.enrolment)
            own = of_its_own_making(port, tmp_path)
            keyless = tls_without_its_key(genuine, tmp_path)
            for shown in (own, keyless):
                async with (
                    relay(always(port.enrolment), shown=shown) as listening,
                    relay(first(port.enrolment, then=listening.address)) as between,
                ):
                    with pytest.raises(ProtocolError) as caught:
                        await enrol(quoting(alice, counting), between.address)
                    assert caught.value.code == "enrolment-broken"
                    assert len(between.passages) >= 2
                    assert listening.heard == b""
            assert counting.quotes == 0
            assert port.refusals() == []
            await trains_undisturbed(port, bob)

    run(story())


def test_a_relay_that_ends_tls_at_the_training_port_is_not_heard(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path / "run") as port:
            enrolled = await enrol(alice, port.enrolment)
            genuine = enrolled.server_certificate
            makes: list[Make] = [
                of_its_own_making,
                with_the_servers_evidence,
                lambda _, directory: tls_without_its_key(genuine, directory),
            ]
            for make in makes:
                shown = make(port, tmp_path)
                async with relay(always(port.training), shown=shown) as between:
                    diverted = replace(port, training=between.address)
                    async with admitted_channel(
                        diverted, alice, enrolled=enrolled
                    ) as channel:
                        with pytest.raises(grpc.aio.AioRpcError) as caught:
                            await model_of(receive(port, channel))
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                    assert between.heard == b""
            assert port.coordinator._attendance._joined == set()
            assert port.coordinator.traffic.sent == 0
            # Both train all the same, as soon as nobody is between.
            async with (
                admitted_channel(port, alice, enrolled=enrolled) as channel,
                admitted_channel(port, bob) as other,
            ):
                await begin_round(port, channel, other)
            assert port.refusals() == []
            assert port.files() == LOG

    run(story())


def test_a_relay_with_the_servers_own_key_reads_everything(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    """What no handshake prevents: the key was taken out of the server's memory.

    It also shows that the relays above would have heard what was said to them.
    """

    async def story() -> None:
        async with open_server(server, tmp_path / "run") as port:
            genuine = await fetch_unverified_certificate(port.enrolment)
            shown = tls_as(server.identity, genuine, tmp_path)
            async with relay(always(port.enrolment), shown=shown) as between:
                await enrol(alice, between.address)
            for secret in secrets_of(alice):
                assert secret in between.heard
            # Admitted is alice all the same, and not the relay.
            [peer] = port.ports.table.parties()
            assert peer.tls_key == alice.identity.tls_spki
            assert port.files() == LOG

    run(story())
