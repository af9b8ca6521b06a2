"""Nodes that nobody warranted yet, and what is left of them when nobody does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.custodian_port import custodian_line
from tests.support.custodians import Custodians, Office
from tests.support.federation_in_memory import Federation, HandClock, quoting
from tests.support.hostile_platforms import CountingPlatform
from tests.support.recorded_log import RecordedLog
from tests.support.registers import content_at

from cloister.attestation.platforms import Platform
from cloister.errors import CloisterError, ProtocolError
from cloister.plan.plan import Plan, plan_hash
from cloister.plan.site import Address
from cloister.ratls.node import Node
from cloister.ratls.warrant import HeldWarrant


def unwarranted(
    federation: Federation,
    party: str,
    *,
    clock: HandClock | None = None,
    plan: Plan | None = None,
) -> tuple[Node, CountingPlatform]:
    """Returns a fresh attested node without a warrant, and what counts its quotes.

    Args:
        federation: Whose platforms and keys it has.
        party: Its party.
        clock: Its time.
        plan: Another plan than the federation's.
    """
    plan = plan or federation.plan
    node = federation.node(party, clock=clock)
    counting = CountingPlatform(node.platform)
    fresh = replace(
        quoting(node, counting),
        plan=plan,
        plan_hash=plan_hash(plan),
        warrant=HeldWarrant(),
    )
    return fresh, counting


def on(platform: Platform, node: Node) -> Node:
    """Returns the node without its warrant, on another platform."""
    return replace(quoting(node, platform), warrant=HeldWarrant())


def check_unwarranted(node: Node) -> None:
    """Checks that a node holds no warrant: it cannot enrol anywhere."""
    with pytest.raises(ProtocolError) as caught:
        _ = node.warrant.current
    assert caught.value.code == "no-warrant"


def epochs_of(custodians: Custodians, party: str) -> list[int]:
    """Returns the epochs in a party's register, as its file has them."""
    _, warrants, _ = content_at(custodians.directory / f"{party}.sqlite")
    return [row.epoch for row in warrants]


async def code_at(node: Node, address: Address) -> str:
    """Returns why a node gets no warrant at an address."""
    log = RecordedLog()
    async with custodian_line(node, address, log=log) as line:
        with pytest.raises(CloisterError) as caught:
            await line.renew()
    assert log.named("warranted") == []
    check_unwarranted(node)
    return caught.value.code


async def goes_on(office: Office, federation: Federation) -> None:
    """Checks that the genuine custodian warrants the genuine node as ever."""
    node, _ = unwarranted(federation, "alice")
    async with office.line(node):
        assert node.warrant.current.terms.epoch == 1
