"""Floods: a thousand connections or calls that each hold what they can, and no key."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import numpy as np
from tests.support.raw_http2 import (
    begin_call,
    client_context,
    open_http2,
    part_of_message,
    preface,
)

from cloister.plan.site import Address
from cloister.ratls.challenge import Hello, encode_message
from cloister.ratls.identity import new_identity

GARBAGE = np.random.default_rng(7).bytes(4096)
# One connection carries so many calls.
_CALLS = 20
# So many connections are made at a time: loopback has a queue as well.
_AT_A_TIME = 50
_FLIGHT_BYTES = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A port, and what strangers know of it.

    Attributes:
        address: Where.
        method: What is called there.
        hello: A hello that fits, but for its key.
        strict: Whether TLS asks for a certificate there.
    """

    address: Address
    method: str
    hello: Hello
    strict: bool = False


Connect = Callable[[Target], Awaitable[asyncio.StreamWriter]]


async def half_open(target: Target) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(target.address.host, target.address.port)
    return writer


async def half_a_tls_handshake(target: Target) -> asyncio.StreamWriter:
    outgoing = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), outgoing)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        writer = await half_open(target)
        writer.write(outgoing.read())
        return writer
    raise RuntimeError("a handshake with nobody")


async def _after_tls(target: Target, message: bytes) -> asyncio.StreamWriter:
    """Says a message after a whole handshake.

    By hand: asyncio clears a quarter of a MiB for each connection that has TLS.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing)
    reader, writer = await asyncio.open_connection(
        target.address.host, target.address.port
    )
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            answer = await reader.read(_FLIGHT_BYTES)
            if not answer:
                writer.transport.abort()
                raise ConnectionResetError("no handshake") from None
            incoming.write(answer)
    if message:
        tls.write(message)
    writer.write(outgoing.read())
    return writer


async def garbage(target: Target) -> asyncio.StreamWriter:
    writer = await half_open(target)
    writer.write(GARBAGE)
    return writer


async def silence_after_tls(target: Target) -> asyncio.StreamWriter:
    return await _after_tls(target, b"")


async def silence_after_preface(target: Target) -> asyncio.StreamWriter:
    return await _after_tls(target, preface())


def _calling(of_each: Callable[[int, Target], bytes]) -> Connect:
    async def connect(target: Target) -> asyncio.StreamWriter:
        _, writer = await open_http2(target.address)
        writer.write(b"".join(of_each(number, target) for number in range(_CALLS)))
        return writer

    return connect


def _silent(number: int, target: Target) -> bytes:
    return begin_call(number, target.method)


def _hello(number: int, target: Target) -> bytes:
    stranger = new_identity()
    hello = msgspec.structs.replace(target.hello, tls_key=bytes(stranger.tls_spki))
    return _silent(number, target) + part_of_message(number, encode_message(hello))


def _elsewhere(number: int, target: Target) -> bytes:
    hello = msgspec.structs.replace(target.hello, plan_hash=bytes(32))
    return _silent(number, target) + part_of_message(number, encode_message(hello))


def _oversized(number: int, target: Target) -> bytes:
    return _silent(number, target) + part_of_message(number, GARBAGE, length=1 << 30)


def _unknown(number: int, _: Target) -> bytes:
    return begin_call(number, "/cloister.Enrolment/Unknown")


def _much_metadata(number: int, target: Target) -> bytes:
    return begin_call(number, target.method, **{"x-much": 100_000 * "m"})


# Each with how many connections make a thousand of it.
CONNECTIONS: dict[Connect, int] = {
    half_open: 1000,
    half_a_tls_handshake: 1000,
    garbage: 1000,
    silence_after_tls: 1000,
    silence_after_preface: 1000,
}
CALLS: dict[str, Connect] = {
    "silent-calls": _calling(_silent),
    "hellos-and-silence": _calling(_hello),
    "hellos-of-strangers": _calling(_elsewhere),
    "oversized-messages": _calling(_oversized),
    "unknown-methods": _calling(_unknown),
    "huge-metadata": _calling(_much_metadata),
}
KINDS: dict[str, tuple[Connect, int]] = {
    **{connect.__name__: (connect, 1000) for connect in CONNECTIONS},
    **{name: (connect, 1000 // _CALLS) for name, connect in CALLS.items()},
}


@asynccontextmanager
async def flood(
    connect: Connect, count: int, targets: Iterable[Target]
) -> AsyncIterator[int]:
    """Keeps so many connections open at every target; says how many there are."""
    writers: list[asyncio.StreamWriter] = []
    try:
        for target in targets:
            for begun in range(0, count, _AT_A_TIME):
                made = await asyncio.gather(
                    *(connect(target) for _ in range(min(_AT_A_TIME, count - begun))),
                    return_exceptions=True,
                )
                # The training port refuses whoever has no certificate.
                writers += [it for it in made if isinstance(it, asyncio.StreamWriter)]
        yield len(writers)
    finally:
        for writer in writers:
            writer.transport.abort()
