"""A custodian's port over a real socket, which can be stopped and started again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.support.addresses import free_addresses
from tests.support.recorded_log import RecordedLog

from cloister.custody.client import CustodianLine
from cloister.custody.custodian import Custodian
from cloister.custody.service import CUSTODY_LIMITS
from cloister.custody.serving import CustodianPort
from cloister.plan.site import Address
from cloister.ratls.limits import USUAL_LIMITS, Limits
from cloister.ratls.node import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCustodian:
    """What a test sees of a custodian at work.

    Attributes:
        port: Its port.
        address: Where it listens.
        log: What it said.
    """

    port: CustodianPort
    address: Address
    log: RecordedLog

    def sessions(self) -> int:
        """Returns how many nodes are connected."""
        return self.port._service._sessions

    def refusals(self) -> list[object]:
        """Returns the code of every refusal, given or heard."""
        names = ("node-refused", "refused-by-peer")
        return [event["code"] for name in names for event in self.log.named(name)]


@asynccontextmanager
async def custodian_port(
    custodian: Custodian,
    *,
    address: Address | None = None,
    limits: Limits = CUSTODY_LIMITS,
) -> AsyncIterator[OpenCustodian]:
    """Opens a custodian's port, at a free address unless one is given."""
    address = address or free_addresses(1)[0]
    log = RecordedLog()
    async with CustodianPort(
        custodian, address, log=log.logger(), limits=limits
    ) as port:
        yield OpenCustodian(port=port, address=address, log=log)


@asynccontextmanager
async def custodian_line(
    node: Node,
    address: Address,
    *,
    log: RecordedLog | None = None,
    limits: Limits = USUAL_LIMITS,
) -> AsyncIterator[CustodianLine]:
    """Lends a node's line to its custodian; it has met nobody yet."""
    log = log or RecordedLog()
    line = CustodianLine(node, address, log=log.logger(), limits=limits)
    try:
        yield line
    finally:
        await line.close()
