"""A custodian at its port whose log, like its register, lies on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.addresses import free_addresses
from tests.support.custodian_port import custodian_line
from tests.support.recorded_log import Event, RecordedLog, read_events

from cloister.cli.journal import open_log
from cloister.custody.custodian import Custodian
from cloister.custody.register_rows import WarrantRow
from cloister.custody.service import CUSTODY_LIMITS
from cloister.custody.serving import CustodianPort
from cloister.plan.site import Address
from cloister.ratls.limits import Limits
from cloister.ratls.node import Node
from cloister.ratls.warrant import HeldWarrant


@dataclass(frozen=True, slots=True, kw_only=True)
class CustodianOnDisk:
    """What a test sees of a custodian at work.

    Attributes:
        custodian: What decides.
        port: Its port.
        address: Where it listens.
        log_path: Its log.
    """

    custodian: Custodian
    port: CustodianPort
    address: Address
    log_path: Path

    def events(self, name: str | None = None) -> list[Event]:
        """Returns its log on disk, all of it or the lines of one kind."""
        return read_events(self.log_path, name)

    def refusals(self) -> list[object]:
        """Returns the code of every refusal in its log on disk, given or heard."""
        names = ("node-refused", "refused-by-peer")
        return [event["code"] for name in names for event in self.events(name)]

    def warrants(self) -> tuple[WarrantRow, ...]:
        """Returns the warrants that its register on disk knows of."""
        return self.custodian.register.warrants()

    def sessions(self) -> int:
        """Returns how many nodes hold a place."""
        return self.port._service._sessions


@asynccontextmanager
async def custodian_on_disk(
    custodian: Custodian, directory: Path, *, limits: Limits = CUSTODY_LIMITS
) -> AsyncIterator[CustodianOnDisk]:
    """Opens a custodian's port at a free address."""
    [address] = free_addresses(1)
    path = directory / "logs" / f"{custodian.party}-custodian.jsonl"
    with open_log(path, as_json=False, party=custodian.party) as log:
        async with CustodianPort(custodian, address, log=log, limits=limits) as port:
            yield CustodianOnDisk(
                custodian=custodian, port=port, address=address, log_path=path
            )


def unwarranted(node: Node) -> Node:
    """Returns the node as it is before it met its custodian."""
    return replace(node, warrant=HeldWarrant())


async def ask_for_warrant(
    node: Node, office: CustodianOnDisk, *, log: RecordedLog | None = None
) -> None:
    """Has a node meet its custodian once, and hang up."""
    async with custodian_line(node, office.address, log=log) as line:
        await line.first_warrant(patience_seconds=0)
