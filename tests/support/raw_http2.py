"""HTTP/2 by hand, so that a test may stop in the middle of anything.

RFC 9113 and, for headers without any compression, RFC 7541. Only what a client sends.
"""

from __future__ import annotations

import asyncio
import functools
import ssl

from cloister.plan.site import Address

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _CONTINUATION = 0, 1, 4, 9
_END_HEADERS = 4
_FRAME_BYTES = 16_384
# No room for anything that the server would send on a stream.
_NO_WINDOW = (4).to_bytes(2, "big") + bytes(4)


async def open_http2(
    address: Address, *, reading: bool = True
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Returns a connection after its preface; `reading` says whether it has room."""
    reader, writer = await asyncio.open_connection(
        address.host, address.port, ssl=client_context()
    )
    writer.write(preface(reading=reading))
    return reader, writer


@functools.cache
def client_context() -> ssl.SSLContext:
    """Returns what a client that has no certificate and asks for none talks TLS with.

    One for all: each connection begins anew, for a client resumes none unasked.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # noqa: TID251 - whoever it is
    context.set_alpn_protocols(["h2"])
    return context


def preface(*, reading: bool = True) -> bytes:
    """Returns what a client begins with."""
    return PREFACE + _frame(_SETTINGS, 0, 0, b"" if reading else _NO_WINDOW)


def begin_call(number: int, path: str, **metadata: str) -> bytes:
    """Returns the beginning of a gRPC call; `number` is its place on the connection."""
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": path,
        ":authority": "server.cloister.invalid",
        "content-type": "application/grpc",
        "te": "trailers",
        **metadata,
    }
    block = b"".join(
        b"\0" + _text(name.encode()) + _text(value.encode())
        for name, value in fields.items()
    )
    parts = [block[at : at + _FRAME_BYTES] for at in range(0, len(block), _FRAME_BYTES)]
    return b"".join(
        _frame(
            _CONTINUATION if at else _HEADERS,
            _END_HEADERS if at == len(parts) - 1 else 0,
            _stream(number),
            part,
        )
        for at, part in enumerate(parts)
    )


def part_of_message(number: int, content: bytes, *, length: int | None = None) -> bytes:
    """Returns a message of a call, or the beginning of one that is longer."""
    length = len(content) if length is None else length
    data = b"\0" + length.to_bytes(4, "big") + content
    return b"".join(
        _frame(_DATA, 0, _stream(number), data[at : at + _FRAME_BYTES])
        for at in range(0, len(data), _FRAME_BYTES)
    )


def _stream(number: int) -> int:
    return 2 * number + 1


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def _text(data: bytes) -> bytes:
    """A string literal: its length in a prefix of seven bits, then its bytes."""
    length, prefix = len(data), b""
    if length >= 127:
        prefix, length = b"\x7f", length - 127
        while length >= 128:
            prefix += bytes([length % 128 | 128])
            length //= 128
    return prefix + bytes([length]) + data
