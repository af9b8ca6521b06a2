"""Messages of a handshake, as one reads them who does not follow it."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from cloister.ratls.challenge import Message, Refusal, decode_message
from cloister.ratls.exchange import Call

Wanted = TypeVar("Wanted", bound=Message)


async def message_in(
    call: Call, decoder: msgspec.msgpack.Decoder[Message], wanted: type[Wanted]
) -> Wanted:
    """Returns the other side's next message, which must be of one kind."""
    raw = await call.read()
    assert isinstance(raw, bytes)
    message = decode_message(raw, decoder)
    assert isinstance(message, wanted)
    return message


async def refusal_in(call: Call, decoder: msgspec.msgpack.Decoder[Message]) -> Refusal:
    """Returns the refusal that the other side sends next."""
    return await message_in(call, decoder, Refusal)
