"""One message after another over a gRPC stream, and no other than the one awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias, TypeVar, overload

import grpc
import msgspec

from cloister.errors import CloisterError, ProtocolError, VerificationError
from cloister.ratls.challenge import (
    Message,
    Refusal,
    decode_message,
    encode_message,
)
from cloister.ratls.refusals import bare_refusal_from, one_line, refused_by_peer

Requests = AsyncIterator[bytes]
Call: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
_Wanted = TypeVar("_Wanted", bound=Message)
_Other = TypeVar("_Other", bound=Message)

# How long a refusal may take to reach the other side; it is told as a courtesy.
COURTESY_SECONDS = 5.0


@overload
async def next_request(
    requests: Requests,
    decoder: msgspec.msgpack.Decoder[Message],
    wanted: type[_Wanted],
    /,
) -> _Wanted: ...


@overload
async def next_request(
    requests: Requests,
    decoder: msgspec.msgpack.Decoder[Message],
    wanted: type[_Wanted],
    other: type[_Other],
    /,
) -> _Wanted | _Other: ...


async def next_request(
    requests: Requests,
    decoder: msgspec.msgpack.Decoder[Message],
    *wanted: type[Message],
) -> Message:
    """Returns a client's next message, which must be one of the kinds wanted.

    Raises:
        RefusedByPeer: If the client sent a refusal.
        ProtocolError: If it sent anything else, or ended the call; a `PeerInTrouble`
            if it sent that it cannot go on.
    """
    raw = await anext(aiter(requests), None)
    if raw is None:
        raise _out_of_order(wanted, "the end of the call")
    message = decode_message(raw, decoder)
    if isinstance(message, wanted):
        return message
    raise _unwanted(message, "the client", wanted)


async def next_reply(
    call: Call,
    decoder: msgspec.msgpack.Decoder[Message],
    wanted: type[_Wanted],
    *,
    peer: str,
) -> _Wanted:
    """Returns the next message of `peer`, which must be of the kind wanted.

    Raises:
        RefusedByPeer: If it sent a refusal.
        ProtocolError: If it sent anything else, or ended the call; a `PeerInTrouble`
            if it sent that it cannot go on.
    """
    raw = await call.read()
    if not isinstance(raw, bytes):  # grpc.aio.EOF
        raise _out_of_order((wanted,), "the end of the call")
    message = decode_message(raw, decoder)
    if isinstance(message, wanted):
        return message
    raise _unwanted(message, peer, (wanted,))


async def reply(context: Context, message: Message) -> None:
    """Sends a client the next message; waits until the network took it.

    A client that does not read could keep this waiting for ever, so it belongs under
    the same limit of time as what is read.
    """
    await context.write(encode_message(message))


async def reply_refusal(context: Context, refusal: Refusal) -> None:
    """Tells a client why it is refused, unless it does not listen."""
    try:
        async with asyncio.timeout(COURTESY_SECONDS):
            await reply(context, refusal)
    except TimeoutError:
        return  # courtesy only: who does not read is refused all the same


async def refuse(call: Call, error: CloisterError) -> None:
    """Says why, and waits for the other side to hang up, so that it has read it.

    Whom it is said to may be anybody, so it hears no more than a code and a line.
    """
    try:
        async with asyncio.timeout(COURTESY_SECONDS):
            await call.write(encode_message(bare_refusal_from(error)))
            await call.done_writing()
            await call.read()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
        return  # courtesy only: the call may be over, or nobody listens


def broken_off(
    peer: str, error: grpc.aio.AioRpcError | asyncio.InvalidStateError
) -> ProtocolError:
    """Returns the error for a call that `peer` or the network cut."""
    return ProtocolError(
        f"{peer} broke off the enrolment",
        code="enrolment-broken",
        got=f"{error.code().name}: {one_line((error.details() or '')[:200])}"
        if isinstance(error, grpc.aio.AioRpcError)
        else "the end of the call",
        remedy="Its log says why; start this node again.",
    )


def not_met(peer: str, error: VerificationError) -> ProtocolError:
    """Returns the error for an address where, for now, somebody else answers.

    For renewals alone: until its certificate holds, whoever answers is nobody. He must
    not end a node whose admission or warrant is in force, so a renewal raises this
    instead of `error` and is tried again. At the first meeting `error` itself counts.
    """
    return ProtocolError(
        f"who answers is not {peer}: {error.what}",
        code=error.code,
        expected=error.expected,
        got=error.got,
        remedy=error.remedy,
    )


def _unwanted(
    message: Message, peer: str, wanted: tuple[type[Message], ...]
) -> CloisterError:
    if isinstance(message, Refusal):
        return refused_by_peer(peer, message)
    return _out_of_order(wanted, type(message).__name__)


def _out_of_order(wanted: tuple[type[Message], ...], got: str) -> ProtocolError:
    return ProtocolError(
        "an enrolment message is out of order",
        code="message-order",
        expected=" or ".join(kind.__name__ for kind in wanted),
        got=got,
    )
