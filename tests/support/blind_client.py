"""A client in league with its server, or careless: it verifies nothing that it sees."""

from __future__ import annotations

from typing import Any

from tests.support.enrolment_port import raw_call
from tests.support.meeting import transcript_of

from cloister.plan.site import Address
from cloister.ratls.certificate import parse_certificate
from cloister.ratls.challenge import (
    Message,
    decode_from_server,
    decode_message,
    encode_message,
)
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node


async def enrol_blindly(node: Node, address: Address) -> Message:
    """Goes through a whole enrolment; returns how the server ended it."""
    client = ClientEnrolment(node)
    der = await fetch_unverified_certificate(address)
    client._pinned = parse_certificate(der, at=node.clock())
    async with raw_call(address) as call:

        async def reply_to(message: Message) -> Any:
            await call.write(encode_message(message))
            raw = await call.read()
            assert isinstance(raw, bytes)
            return decode_message(raw, decode_from_server)

        challenge = await reply_to(client.hello())
        await reply_to(client.answer(challenge))
        ended: Message = await reply_to(node.prover.prove(transcript_of(client)))
        return ended
