"""Looks at a port's TLS without believing it: the one place that verifies nothing.

A client must see the server's certificate before it can verify the evidence inside and
pin it, and a server must try its own port with TLS 1.2. Both need one handshake with a
peer that is nobody yet. Nothing is ever sent over these connections, and what is read
goes to a verifier or is thrown away.
"""

from __future__ import annotations

import asyncio
import ssl

from cloister.errors import ProtocolError
from cloister.plan.site import Address

_CONNECT_SECONDS = 10.0


async def fetch_unverified_certificate(address: Address) -> bytes:
    """Returns the certificate (DER) that whoever listens at `address` shows.

    Raises:
        ProtocolError: If nobody answers there with TLS 1.3.
    """
    try:
        writer = await open_unverified(address, newest=ssl.TLSVersion.TLSv1_3)
    except (OSError, UnicodeError) as error:  # UnicodeError: a host no name can be
        raise ProtocolError(
            f"no server answers at {address}",
            code="server-unreachable",
            expected="a Cloister server's enrolment port",
            got=type(error).__name__,
            remedy="Start the server, or correct the address in site.toml.",
        ) from error
    try:
        tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls else None
    finally:
        # Not `close`: it would go on talking TLS with whoever that is.
        writer.transport.abort()
    if not der:
        raise ProtocolError(
            f"the server at {address} shows no certificate", code="certificate-missing"
        )
    return der


async def open_unverified(
    address: Address, *, newest: ssl.TLSVersion
) -> asyncio.StreamWriter:
    """Returns a connection whose peer is unknown; abort it, send nothing.

    Args:
        address: Where to connect.
        newest: Highest protocol version offered; 1.2 or 1.3.

    Raises:
        OSError: If no connection comes about (`ssl.SSLError` among them).
        TimeoutError: If the peer does not answer.
    """
    # A bare context: the ssl module's ready-made ones read SSLKEYLOGFILE.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # noqa: TID251 - see the module's docstring
    context.minimum_version = min(newest, ssl.TLSVersion.TLSv1_3)
    context.maximum_version = newest
    context.set_alpn_protocols(["h2"])
    host = address.host.strip("[]")
    async with asyncio.timeout(_CONNECT_SECONDS):
        _, writer = await asyncio.open_connection(host, address.port, ssl=context)
    return writer
