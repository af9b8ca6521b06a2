"""Certificates and ports of somebody who poses as a server or a custodian."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.support.addresses import free_addresses

from cloister.custody.certificate import make_custodian_certificate
from cloister.plan.site import Address
from cloister.ratls.certificate import SERVER_NAME, SIGNATURES_ONLY
from cloister.ratls.challenge import MAX_MESSAGE_BYTES
from cloister.ratls.channels import enrolment_credentials, listen, server_options
from cloister.ratls.identity import NodeIdentity

LIFE = timedelta(days=1)


def plain_certificate(identity: NodeIdentity, *, at: datetime) -> bytes:
    """Returns a certificate like a server's in all but evidence, which is missing."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(identity.tls_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - LIFE)
        .not_valid_after(at + LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True
        )
        .add_extension(SIGNATURES_ONLY, critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False
        )
    )
    return builder.sign(identity.tls_key, hashes.SHA256()).public_bytes(Encoding.DER)


def custodian_certificate(
    identity: NodeIdentity, party: str, key: Ed25519PrivateKey, *, at: datetime
) -> bytes:
    """Returns a custodian's certificate for `identity`, signed by whoever's key."""
    return make_custodian_certificate(party, key, identity.tls_key, at=at, life=LIFE)


@asynccontextmanager
async def posing_port(
    identity: NodeIdentity, certificate: bytes, service: grpc.GenericRpcHandler
) -> AsyncIterator[Address]:
    """Opens a port with a certificate and a service of somebody's choice."""
    [address] = free_addresses(1)
    server = grpc.aio.server(options=server_options(MAX_MESSAGE_BYTES))
    server.add_generic_rpc_handlers((service,))
    listen(server, address, enrolment_credentials(identity, certificate))
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)
