"""Nodes whose time a host plays with: its clock, and the counter behind it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tests.support.federation_in_memory import START, HandClock

from cloister.custody.custodian import Custodian
from cloister.ratls.clock import FlooredClock
from cloister.ratls.node import Node


@dataclass(slots=True)
class Host:
    """A machine whose owner sets its clock, while real time goes on.

    Attributes:
        clock: What the machine says; stands still unless it is set.
        passed: The seconds that have passed, which a process counts for itself.
    """

    clock: HandClock = field(default_factory=HandClock)
    passed: float = 0.0

    def set(self, to: datetime) -> None:
        self.clock.now = to

    def floored(self) -> FlooredClock:
        return FlooredClock(self.clock, elapsed=lambda: self.passed)


def host_at(offset: timedelta) -> Host:
    """Returns a machine whose clock differs from the others' by so much."""
    return Host(HandClock(START + offset))


def at_host(node: Node, host: Host) -> Node:
    """Returns the node as it is on a machine; it verified no signed time yet."""
    clock = host.floored()
    appraiser = replace(node.appraiser, clock=clock)
    return replace(node, clock=clock, appraiser=appraiser)


def custodian_at(custodian: Custodian, host: Host) -> Custodian:
    """Returns a custodian on another machine."""
    clock = host.floored()
    return replace(custodian, appraiser=replace(custodian.appraiser, clock=clock))
