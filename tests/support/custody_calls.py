"""A node's session with a custodian, whose messages the test sends itself."""

from __future__ import annotations

from dataclasses import replace

from tests.support.custody_keys import KeyedFederation
from tests.support.federation_in_memory import HandClock
from tests.support.raw_messages import message_in, refusal_in

from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    KeyRequest,
    KeysReleased,
    Met,
    Warranted,
    decode_from_custodian,
)
from cloister.custody.node_meeting import NodeMeeting
from cloister.custody.node_share_meeting import NodeShareMeeting
from cloister.plan.site import Address
from cloister.ratls.challenge import Refusal, encode_message
from cloister.ratls.exchange import Call
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.node import Node
from cloister.ratls.warrant import HeldWarrant
from cloister.storage.keys import KeyKind


def fresh_node(
    keyed: KeyedFederation, party: str, *, clock: HandClock | None = None
) -> Node:
    """Returns a party's node before anybody warranted it."""
    return replace(keyed.federation.node(party, clock=clock), warrant=HeldWarrant())


async def warranted_in(call: Call, node: Node, address: Address) -> NodeMeeting:
    """Goes through a session with the party's own custodian, up to the warrant."""
    meeting = NodeMeeting(node)
    meeting.pin(await fetch_unverified_certificate(address))
    await call.write(encode_message(meeting.hello()))
    challenge = await message_in(call, decode_from_custodian, CustodianChallenge)
    await call.write(encode_message(meeting.possess(challenge)))
    proof = await message_in(call, decode_from_custodian, CustodianProof)
    await call.write(encode_message(meeting.prove(proof)))
    meeting.accept(await message_in(call, decode_from_custodian, Warranted))
    return meeting


async def met_in(
    call: Call, node: Node, address: Address, *, party: str
) -> NodeShareMeeting:
    """Goes through a session with another party's custodian, until it is met."""
    meeting = NodeShareMeeting(node, party=party)
    meeting.pin(await fetch_unverified_certificate(address))
    await call.write(encode_message(meeting.hello()))
    challenge = await message_in(call, decode_from_custodian, CustodianChallenge)
    await call.write(encode_message(meeting.answer(challenge)))
    proof = await message_in(call, decode_from_custodian, CustodianProof)
    await call.write(encode_message(meeting.prove(proof)))
    meeting.accept(await message_in(call, decode_from_custodian, Met))
    return meeting


async def released_in(call: Call, *kinds: KeyKind) -> KeysReleased:
    """Asks for keys, which must come."""
    await call.write(encode_message(KeyRequest(kinds=kinds)))
    return await message_in(call, decode_from_custodian, KeysReleased)


async def refused_in(call: Call, *kinds: KeyKind) -> Refusal:
    """Asks for keys, which must be refused."""
    await call.write(encode_message(KeyRequest(kinds=kinds)))
    return await refusal_in(call, decode_from_custodian)
