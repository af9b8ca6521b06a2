"""Somebody on the way: passes on what both sides say, and keeps what it could read."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from tests.support.addresses import free_addresses

from cloister.plan.site import Address
from cloister.ratls.identity import NodeIdentity

Route = Callable[[int], Address]
_PRE_SHARED_KEY = 41


@dataclass(slots=True)
class Passage:
    """One connection through a relay.

    Attributes:
        up: What the client sent, as the relay could read it.
        down: What the other side answered.
        over: Set when either side has hung up.
    """

    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def resumed(self) -> bool:
        """Whether the server took up an earlier TLS session; both must be in clear.

        A resumed handshake shows no certificate, neither way.
        """
        return _PRE_SHARED_KEY in _server_hello_extensions(bytes(self.down))


@dataclass(slots=True, kw_only=True)
class Relay:
    """What a test sees of a relay.

    Attributes:
        address: Where it listens.
        route: Where the n-th connection goes, counted from 0; may be changed.
        passages: The connections whose first handshake, if any, came about.
    """

    address: Address
    route: Route
    passages: list[Passage] = field(default_factory=list)

    @property
    def heard(self) -> bytes:
        """All that it could read, both ways."""
        return b"".join(bytes(it.up + it.down) for it in self.passages)


def always(to: Address) -> Route:
    """Returns the route of a relay that leads everybody to one place."""
    return lambda _: to


def first(to: Address, *, then: Address) -> Route:
    """Returns the route of a relay that is honest once."""
    return lambda number: then if number else to


@asynccontextmanager
async def relay(
    route: Route, *, shown: ssl.SSLContext | None = None
) -> AsyncIterator[Relay]:
    """Opens a relay.

    Args:
        route: Where each connection goes.
        shown: Whom it poses as: it ends TLS itself then, and begins its own towards the
            other side. Without it the relay passes on bytes.
    """
    [address] = free_addresses(1)
    lent = Relay(address=address, route=route)
    under_way: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        passage = Passage()
        to = lent.route(len(lent.passages))
        lent.passages.append(passage)
        try:
            await _pass_on(passage, reader, writer, to=to, in_tls=shown is not None)
        finally:
            passage.over.set()
            writer.transport.abort()

    server = await asyncio.start_server(serve, address.host, address.port, ssl=shown)
    try:
        yield lent
    finally:
        server.close()
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await server.wait_closed()


def tls_as(
    identity: NodeIdentity, certificate: bytes, directory: Path, *, client: bool = False
) -> ssl.SSLContext:
    """Returns TLS for one who shows a certificate (DER) of its own key."""
    return _context(identity.tls_key_pem(), certificate, directory, client=client)


def tls_without_its_key(
    certificate: bytes, directory: Path, *, client: bool = False
) -> ssl.SSLContext:
    """Returns TLS for one who shows another's certificate and signs with its own key.

    OpenSSL refuses a key that does not fit. So the public half in the file is the
    certificate's, which it compares, and the private half, with which it signs, is not.
    """
    own = ec.generate_private_key(ec.SECP256R1())
    theirs = x509.load_der_x509_certificate(certificate).public_key()
    assert isinstance(theirs, ec.EllipticCurvePublicKey)
    der = own.private_bytes(
        Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    assert _point(own.public_key()) in der
    forged = der.replace(_point(own.public_key()), _point(theirs))
    pem = (
        b"-----BEGIN EC PRIVATE KEY-----\n"
        + base64.encodebytes(forged)
        + b"-----END EC PRIVATE KEY-----\n"
    )
    return _context(pem, certificate, directory, client=client)


def _context(
    key: bytes, certificate: bytes, directory: Path, *, client: bool
) -> ssl.SSLContext:
    path = directory / "posing.pem"
    path.write_bytes(key + ssl.DER_cert_to_PEM_cert(certificate).encode())
    context = _believing() if client else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(path)
    path.unlink()
    return context


def _believing() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # noqa: TID251 - an attacker believes anybody
    context.set_alpn_protocols(["h2"])
    return context


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


async def _pass_on(
    passage: Passage,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    to: Address,
    in_tls: bool,
) -> None:
    with contextlib.suppress(OSError):
        far_reader, far_writer = await asyncio.open_connection(
            to.host, to.port, ssl=_believing() if in_tls else None
        )
        try:
            await asyncio.gather(
                _pump(reader, far_writer, passage, passage.up),
                _pump(far_reader, writer, passage, passage.down),
            )
        finally:
            far_writer.transport.abort()


async def _pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    passage: Passage,
    heard: bytearray,
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            heard += data
            writer.write(data)
            await writer.drain()
    passage.over.set()
    writer.close()


def _server_hello_extensions(stream: bytes) -> set[int]:
    """Returns the kinds of extensions in a server's first message (RFC 8446, 4.1.3)."""
    if len(stream) < 5:
        return set()
    assert stream[0] == 22  # a handshake record
    hello = stream[5 : 5 + int.from_bytes(stream[3:5])]
    assert hello[0] == 2  # ServerHello
    at = 4 + 2 + 32  # header, version, random
    at += 1 + hello[at]  # session id
    at += 2 + 1  # cipher suite, compression
    end = at + 2 + int.from_bytes(hello[at : at + 2])
    at += 2
    kinds = set()
    while at < end:
        kinds.add(int.from_bytes(hello[at : at + 2]))
        at += 4 + int.from_bytes(hello[at + 2 : at + 4])
    return kinds
