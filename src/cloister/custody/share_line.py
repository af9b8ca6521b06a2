"""A node's way to another party's custodian: one session, for one share."""

from __future__ import annotations

import asyncio

from structlog.typing import FilteringBoundLogger

from cloister.custody.calling import Callee, patiently, refusing
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    KeysReleased,
    Met,
    decode_from_custodian,
)
from cloister.custody.node_share_meeting import NodeShareMeeting
from cloister.plan.site import Address
from cloister.ratls.challenge import encode_message
from cloister.ratls.exchange import Call, next_reply
from cloister.ratls.limits import USUAL_LIMITS, Limits
from cloister.ratls.node import Node
from cloister.storage.keys import Secret


async def fetch_share(
    node: Node,
    address: Address,
    *,
    party: str,
    patience_seconds: float,
    log: FilteringBoundLogger,
    limits: Limits = USUAL_LIMITS,
) -> Secret:
    """Returns another party's share of this node's state key, the one in the plan.

    Args:
        node: The node; it has a warrant.
        address: Where that party's custodian listens.
        party: Whose custodian.
        patience_seconds: How long is waited for it, and for that party's consent.
        log: Says once for each reason that it is waited for, and whose it is.
        limits: How long the custodian may take for an answer.

    Raises:
        VerificationError: If either refuses the other, or the share is another.
        ProtocolError: If no custodian answers for that long, or it cannot go on.
    """
    custodian = Callee(
        address=address,
        whose=f"the custodian of {party!r}, who holds a share of the state key",
        section="shares",
        limits=limits,
        share_of=party,
    )
    return await patiently(
        lambda: _fetch(node, custodian, party=party),
        custodian=custodian,
        patience_seconds=patience_seconds,
        log=log,
    )


async def _fetch(node: Node, custodian: Callee, *, party: str) -> Secret:
    meeting = NodeShareMeeting(node, party=party)
    certificate = meeting.pin(await custodian.fetch_unverified_certificate())
    async with (
        custodian.call(certificate) as call,
        custodian.answering(),
        refusing(call),
    ):
        return await _ask(meeting, call, peer=f"the custodian of {party!r}")


async def _ask(meeting: NodeShareMeeting, call: Call, *, peer: str) -> Secret:
    decoder = decode_from_custodian
    await call.write(encode_message(meeting.hello()))
    challenge = await next_reply(call, decoder, CustodianChallenge, peer=peer)
    await call.write(encode_message(meeting.answer(challenge)))
    proof = await next_reply(call, decoder, CustodianProof, peer=peer)
    # In a thread: a quote takes a while on real machines.
    await call.write(encode_message(await asyncio.to_thread(meeting.prove, proof)))
    meeting.accept(await next_reply(call, decoder, Met, peer=peer))
    await call.write(encode_message(meeting.request()))
    return meeting.open(await next_reply(call, decoder, KeysReleased, peer=peer))
