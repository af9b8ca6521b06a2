"""Whoever offers less than TLS 1.3 gets no connection, on either port."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
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
                stream.close()
            assert port.admitted() == []
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


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
