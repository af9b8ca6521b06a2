"""Strangers on the training port: TLS is the gate, and it stays shut."""

from __future__ import annotations

import ssl
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from tests.support.federation_in_memory import START, Federation
from tests.support.open_server import OpenServer, admitted_channel, open_server
from tests.support.running import Run
from tests.support.training_calls import model_of, receive

from cloister.ratls.admission import new_authority
from cloister.ratls.certificate import make_certificate
from cloister.ratls.enrolling import Enrolled, enrol
from cloister.ratls.epochs import EpochMemory
from cloister.ratls.node import Node

LIFE = timedelta(days=1)


async def is_kept_out(port: OpenServer, node: Node, enrolled: Enrolled) -> None:
    """Tries to receive the model; must get nothing at all."""
    async with admitted_channel(port, node, enrolled=enrolled) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await model_of(receive(port, channel))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert port.coordinator.traffic.sent == 0


def test_a_stranger_without_certificate_gets_nothing(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            enrolled = await enrol(alice, port.enrolment)
            bare = grpc.ssl_channel_credentials(_pem(enrolled.server_certificate))
            options = [("grpc.ssl_target_name_override", "server.cloister.invalid")]
            channel = grpc.aio.secure_channel(str(port.training), bare, options=options)
            async with channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await model_of(receive(port, channel))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert port.coordinator.traffic.sent == 0
            assert port.admitted() == [("alice", 1)]
            assert port.refusals() == []
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


def test_a_certificate_of_ones_own_making_gets_nothing(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            enrolled = await enrol(alice, port.enrolment)
            own = make_certificate(alice.identity, alice.platform, at=START, life=LIFE)
            await is_kept_out(port, alice, shown(enrolled, own))
            assert port.admitted() == [("alice", 1)]
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


def test_a_certificate_of_another_admission_authority_gets_nothing(
    run: Run, federation: Federation, server: Node, alice: Node, tmp_path: Path
) -> None:
    """A second server of the very same plan admits to itself, and to nobody else."""

    async def story() -> None:
        second = federation.node("aggregator")
        async with (
            open_server(server, tmp_path / "first") as port,
            open_server(second, tmp_path / "second") as other,
        ):
            enrolled = await enrol(alice, port.enrolment)
            # She would refuse two servers with one epoch; a hostile node forgets.
            forgetful = replace(alice, epochs=EpochMemory())
            elsewhere = await enrol(forgetful, other.enrolment)
            foreign = elsewhere.admittance.certificate
            await is_kept_out(port, alice, shown(enrolled, foreign))
            assert port.refusals() == other.refusals() == []

    run(story())


def test_an_authority_of_the_same_name_gets_nothing(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            enrolled = await enrol(alice, port.enrolment)
            [peer] = port.ports.table.parties()
            forged = new_authority(at=START, life=LIFE).issue(
                peer, at=START, expires_at=START + LIFE
            )
            await is_kept_out(port, alice, shown(enrolled, forged))

    run(story())


def test_a_certificate_whose_key_never_was_in_the_table_is_refused(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    """Past the gate stands the guard: it asks the table, not the certificate."""

    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            enrolled = await enrol(alice, port.enrolment)
            port.ports.table._by_key.clear()
            async with admitted_channel(port, alice, enrolled=enrolled) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await model_of(receive(port, channel))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert port.refusals() == ["not-admitted"]
            assert port.coordinator.traffic.sent == 0

    run(story())


def shown(enrolled: Enrolled, certificate: bytes) -> Enrolled:
    """Returns the enrolment with another certificate to show."""
    admittance = replace(enrolled.admittance, certificate=certificate)
    return replace(enrolled, admittance=admittance)


def _pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()
