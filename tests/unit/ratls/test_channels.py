from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from tests.support.addresses import free_addresses
from tests.support.federation_in_memory import START
from tests.support.running import Run

from cloister.cli.interpreter import NODE_ENVIRONMENT
from cloister.errors import PlatformError, ProtocolError
from cloister.plan.site import Address
from cloister.ratls.certificate import make_certificate
from cloister.ratls.channels import (
    TLS13_ONLY,
    enrolment_credentials,
    listen,
    prove_tls13_only,
    server_options,
)
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node

LIFE = timedelta(days=1)


def test_nodes_and_tests_run_under_the_settings_that_allow_tls_1_3_alone() -> None:
    for environment in (os.environ, NODE_ENVIRONMENT):
        assert TLS13_ONLY.items() <= dict(environment).items()


@asynccontextmanager
async def grpc_port(node: Node, address: Address) -> AsyncIterator[bytes]:
    """Listens as the enrolment port does; gives the certificate shown."""
    certificate = make_certificate(node.identity, node.platform, at=START, life=LIFE)
    server = grpc.aio.server(options=server_options(1024))
    listen(server, address, enrolment_credentials(node.identity, certificate))
    await server.start()
    try:
        yield certificate
    finally:
        await server.stop(0)


@asynccontextmanager
async def plain_port(
    node: Node, address: Address, directory: Path, *, oldest: ssl.TLSVersion
) -> AsyncIterator[None]:
    """Listens with Python's own TLS, which speaks 1.2 unless told otherwise."""
    certificate = make_certificate(node.identity, node.platform, at=START, life=LIFE)
    path = directory / "server.pem"
    key = node.identity.tls_key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    path.write_bytes(key + ssl.DER_cert_to_PEM_cert(certificate).encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = oldest
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(path)

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(
        hang_up, address.host, address.port, ssl=context
    )
    async with server:
        yield


def test_a_port_of_ours_proves_that_it_speaks_tls_1_3_alone(
    run: Run, server: Node
) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        async with grpc_port(server, address) as certificate:
            await prove_tls13_only(address)
            assert await fetch_unverified_certificate(address) == certificate

    run(story())


def test_the_self_test_notices_a_port_that_speaks_tls_1_2(
    run: Run, server: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        with pytest.raises(PlatformError) as caught:
            async with plain_port(
                server, address, tmp_path, oldest=ssl.TLSVersion.TLSv1_2
            ):
                await prove_tls13_only(address)
        assert caught.value.code == "tls-too-old"

    run(story())


def test_the_self_test_is_content_with_any_port_that_speaks_1_3_alone(
    run: Run, server: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        async with plain_port(server, address, tmp_path, oldest=ssl.TLSVersion.TLSv1_3):
            await prove_tls13_only(address)

    run(story())


def test_the_self_test_fails_where_nobody_listens(run: Run) -> None:
    [address] = free_addresses(1)
    with pytest.raises(PlatformError) as caught:
        run(prove_tls13_only(address))
    assert caught.value.code == "tls-unusable"


def test_a_port_in_use_is_refused_by_its_address(run: Run, server: Node) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        async with grpc_port(server, address):
            with pytest.raises(PlatformError, match=str(address)) as caught:
                async with grpc_port(server, address):
                    pytest.fail("two servers at one address")
        assert caught.value.code == "port-unusable"

    run(story())


@pytest.mark.parametrize("host", ["127.0.0.1", "a..b", "x" * 64, "[::1]"])
def test_where_no_server_answers_the_address_is_named(run: Run, host: str) -> None:
    [free] = free_addresses(1)
    address = Address(host, free.port)
    with pytest.raises(ProtocolError) as caught:
        run(fetch_unverified_certificate(address))
    assert caught.value.code == "server-unreachable"
    assert str(address) in caught.value.what


def test_a_port_that_speaks_no_tls_is_no_server(run: Run) -> None:
    async def story() -> None:
        async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n")
            writer.close()

        [address] = free_addresses(1)
        async with await asyncio.start_server(talk, address.host, address.port):
            with pytest.raises(ProtocolError) as caught:
                await fetch_unverified_certificate(address)
        assert caught.value.code == "server-unreachable"

    run(story())
