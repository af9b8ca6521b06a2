"""Whoever offers less than TLS 1.3 gets no connection, on any port."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.custodians import Custodians
from tests.support.federation_in_memory import Federation
from tests.support.open_server import OpenServer, open_server
from tests.support.running import Run

from cloister.plan.site import Address
from cloister.ratls.insecure_fetch import open_unverified
from cloister.ratls.node import Node


def both(port: OpenServer) -> tuple[Address, Address]:
    return port.enrolment, port.training


def test_tls_1_2_is_refused_on_both_ports_and_1_3_is_spoken(
    run: Run, server: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            for address in both(port):
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await open_unverified(address, newest=ssl.TLSVersion.TLSv1_2)
                stream = await open_unverified(address, newest=ssl.TLSVersion.TLSv1_3)
                tls = stream.get_extra_info("ssl_object")
                assert tls.version() == "TLSv1.3"
                stream.transport.abort()
            assert port.admitted() == []
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


def test_tls_1_2_is_refused_by_a_custodian_and_1_3_is_spoken(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    custodians = Custodians(
        federation=federation, directory=tmp_path, plan=federation.plan
    )

    async def story() -> None:
        async with custodians.office("alice") as office:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await open_unverified(office.address, newest=ssl.TLSVersion.TLSv1_2)
            stream = await open_unverified(
                office.address, newest=ssl.TLSVersion.TLSv1_3
            )
            assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
            stream.transport.abort()
            assert office.register.warrants() == ()

    run(story())


def test_a_cipher_list_that_comes_after_grpc_does_nothing_and_is_found_out() -> None:
    """The self-test at a port's start is what stands between this slip and TLS 1.2."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRPC_")}
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", _TOO_LATE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == "tls-too-old", done.stderr


_TOO_LATE = """
import asyncio, os
import grpc
from cloister.ratls.channels import TLS13_ONLY, enrolment_credentials, listen
from cloister.ratls.channels import prove_tls13_only
from cloister.custody.certificate import make_custodian_certificate
from cloister.errors import PlatformError
from cloister.ratls.identity import new_identity
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from datetime import UTC, datetime, timedelta
from tests.support.addresses import free_addresses

async def main():
    await grpc.aio.secure_channel("localhost:1", grpc.ssl_channel_credentials()).close()
    os.environ.update(TLS13_ONLY)
    identity = new_identity()
    certificate = make_custodian_certificate(
        "alice", Ed25519PrivateKey.generate(), identity.tls_key,
        at=datetime.now(UTC), life=timedelta(days=1),
    )
    [address] = free_addresses(1)
    server = grpc.aio.server()
    listen(server, address, enrolment_credentials(identity, certificate))
    await server.start()
    try:
        await prove_tls13_only(address)
    except PlatformError as error:
        print(error.code)
    await server.stop(0)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "ciphers",
    [
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-AES128-GCM-SHA256",  # the one that gRPC is left with
        "ALL:@SECLEVEL=0",
    ],
)
def test_no_cipher_of_tls_1_2_opens_a_port(
    run: Run, server: Node, tmp_path: Path, ciphers: str
) -> None:
    async def story() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # noqa: TID251 - any server will do
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        context.set_alpn_protocols(["h2"])
        async with open_server(server, tmp_path) as port:
            for address in both(port):
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await asyncio.open_connection(
                        address.host, address.port, ssl=context
                    )

    run(story())
