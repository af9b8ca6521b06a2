"""An admitted client that would like to be the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from tests.support.addresses import free_addresses
from tests.support.federation_in_memory import START, Federation
from tests.support.open_server import admitted_channel, open_server
from tests.support.running import Run
from tests.support.training_calls import model_of, receive
from typing_extensions import override

from cloister.errors import AppraisalError, VerificationError
from cloister.plan.site import Address
from cloister.ratls.certificate import make_certificate
from cloister.ratls.channels import enrolment_credentials, listen, server_options
from cloister.ratls.enrolling import enrol
from cloister.ratls.node import Node


class Eavesdropper(grpc.GenericRpcHandler):
    """Notes whoever calls, whatever they call."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @override
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        self.calls.append(handler_call_details.method)
        return None


@asynccontextmanager
async def posing(
    node: Node, certificate: bytes
) -> AsyncIterator[tuple[Address, Eavesdropper]]:
    """Listens as `node` with a certificate of its choice."""
    [address] = free_addresses(1)
    eavesdropper = Eavesdropper()
    server = grpc.aio.server(options=server_options(1 << 20))
    server.add_generic_rpc_handlers((eavesdropper,))
    listen(server, address, enrolment_credentials(node.identity, certificate))
    await server.start()
    try:
        yield address, eavesdropper
    finally:
        await server.stop(0)


def test_an_admission_certificate_makes_no_server(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            enrolled = await enrol(alice, port.enrolment)
            admitted = await enrol(bob, port.enrolment)
            async with posing(bob, admitted.admittance.certificate) as (address, ear):
                # Alice's channel is led to bob, as whoever owns the network can do.
                diverted = replace(port, training=address)
                async with admitted_channel(
                    diverted, alice, enrolled=enrolled
                ) as channel:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await model_of(receive(port, channel))
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                # Nor does a client enrol there.
                with pytest.raises(VerificationError) as refused:
                    await enrol(alice, address)
                assert refused.value.code == "certificate-signature"
            assert ear.calls == []
            assert port.admitted() == [("alice", 1), ("bob", 1)]
            assert port.refusals() == []
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


def test_a_workers_evidence_makes_no_server(run: Run, alice: Node, bob: Node) -> None:
    async def story() -> None:
        certificate = make_certificate(
            bob.identity, bob.platform, at=START, life=timedelta(days=1)
        )
        async with posing(bob, certificate) as (address, ear):
            with pytest.raises(AppraisalError) as caught:
                await enrol(alice, address)
            # It hears that it is refused, and why; it never hears a hello.
            assert ear.calls == ["/cloister.Enrolment/Enrol"]
        assert caught.value.code == "appraisal-measurement"

    run(story())


def test_another_genuine_server_does_not_take_over_a_running_channel(
    run: Run, federation: Federation, server: Node, alice: Node, tmp_path: Path
) -> None:
    """Same plan, same code, same party: but the key is not the one alice pinned."""

    async def story() -> None:
        second = federation.node("aggregator")
        async with (
            open_server(server, tmp_path / "first") as port,
            open_server(second, tmp_path / "second") as other,
        ):
            enrolled = await enrol(alice, port.enrolment)
            diverted = replace(port, training=other.training)
            async with admitted_channel(diverted, alice, enrolled=enrolled) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await model_of(receive(port, channel))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert other.admitted() == []
            assert other.coordinator.traffic.sent == 0

    run(story())
