"""Somebody got a pinned certificate's key to sign a certificate of his own.

CA:FALSE does not stop him: gRPC does not look at it in what it pins, but at key usage.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tests.support.addresses import free_addresses
from tests.support.federation_in_memory import make_federation
from tests.support.running import Run

from cloister.custody.certificate import make_custodian_certificate
from cloister.plan.site import Address
from cloister.ratls.certificate import SERVER_NAME, make_certificate
from cloister.ratls.channels import enrolment_credentials, listen, open_channel
from cloister.ratls.identity import NodeIdentity, new_identity

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
METHOD = "/cloister.Test/Listen"
UnaryUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
MakeLeaf = Callable[[NodeIdentity, Path], bytes]


def custodian_leaf(identity: NodeIdentity, _: Path) -> bytes:
    return make_custodian_certificate(
        "alice", Ed25519PrivateKey.generate(), identity.tls_key, at=NOW, life=DAY
    )


def evidence_leaf(identity: NodeIdentity, directory: Path) -> bytes:
    platform = make_federation(directory).platform("aggregator")
    return make_certificate(identity, platform, at=NOW, life=DAY)


def issued_by(leaf: bytes, issuer: NodeIdentity, impostor: NodeIdentity) -> bytes:
    """Returns what the leaf's key signs for the impostor's, as a CA would."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.load_der_x509_certificate(leaf).subject)
        .public_key(impostor.tls_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False
        )
    )
    signed = builder.sign(issuer.tls_key, hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


@asynccontextmanager
async def port(
    identity: NodeIdentity, certificate: bytes, heard: list[bytes]
) -> AsyncIterator[Address]:
    async def hear(request: bytes, _: object) -> bytes:
        heard.append(request)
        return b"go on"

    [address] = free_addresses(1)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "cloister.Test", {"Listen": grpc.unary_unary_rpc_method_handler(hear)}
            ),
        )
    )
    listen(server, address, enrolment_credentials(identity, certificate))
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


async def say(address: Address, *, pinned: bytes) -> None:
    channel = open_channel(address, pinned_certificate=pinned, max_message_bytes=1024)
    async with channel:
        call: UnaryUnary = channel.unary_unary(METHOD)
        await call(b"a secret")


@pytest.mark.parametrize("make_leaf", [custodian_leaf, evidence_leaf])
def test_what_a_pinned_key_signs_is_not_spoken_to(
    run: Run, tmp_path: Path, make_leaf: MakeLeaf
) -> None:
    owner, impostor = new_identity(), new_identity()
    leaf = make_leaf(owner, tmp_path)
    forged = issued_by(leaf, owner, impostor)

    async def story() -> tuple[list[bytes], list[bytes]]:
        heard_by_owner: list[bytes] = []
        heard_by_impostor: list[bytes] = []
        async with port(owner, leaf, heard_by_owner) as address:
            await say(address, pinned=leaf)
        async with port(impostor, forged, heard_by_impostor) as address:
            with pytest.raises(grpc.aio.AioRpcError):
                await say(address, pinned=leaf)
        return heard_by_owner, heard_by_impostor

    assert run(story()) == ([b"a secret"], [])
