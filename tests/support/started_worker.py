"""A worker of alice's that needs the share of another party before it can begin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.custodian_on_disk import CustodianOnDisk
from tests.support.custodian_port import custodian_line
from tests.support.custody_calls import fresh_node
from tests.support.custody_keys import KeyedFederation
from tests.support.custody_safes import (
    check_no_key_in,
    check_no_key_on_disk,
    kinds_recorded,
    office_of,
)
from tests.support.federation_in_memory import quoting
from tests.support.hostile_platforms import CountingPlatform
from tests.support.recorded_log import RecordedLog

from cloister.custody.node_keys import NodeKeys, gather_keys
from cloister.errors import CloisterError
from cloister.plan.site import Address
from cloister.ratls.node import Node
from cloister.storage.keys import KeyKind

SHARE: KeyKind = "state-share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A worker of alice's that is started, and what becomes of it.

    Attributes:
        keyed: Its federation.
        own: Its own custodian.
        other: The custodian that holds the other share.
        node: The node.
        quotes: Counts the evidence that it makes.
        log: What it says.
        began: What it began to do once it had its keys.
    """

    keyed: KeyedFederation
    own: CustodianOnDisk
    other: CustodianOnDisk
    node: Node
    quotes: CountingPlatform
    log: RecordedLog
    began: list[NodeKeys]

    async def run(self, shares: dict[str, Address]) -> None:
        """Does what a worker's process does until it trains."""
        log = self.log
        async with custodian_line(self.node, self.own.address, log=log) as line:
            await line.first_warrant(patience_seconds=0)
            keys = await gather_keys(
                self.node,
                line,
                share_addresses=shares,
                platform=self.quotes,
                patience_seconds=0,
                log=log.logger(),
            )
            self.began.append(keys)

    async def fails(self, address: Address) -> CloisterError:
        """Returns why it ends; it has no state key then, and began nothing."""
        with pytest.raises(CloisterError) as caught:
            await self.run({"aggregator": address})
        assert self.began == []
        assert [event["event"] for event in self.log.events] == ["warranted"]
        told = f"{caught.value!r}{caught.value}{self.log.text()}"
        check_no_key_in(told, self.keyed.secrets.values())
        # Only its own custodian gave it anything.
        kinds = [it["kinds"] for it in self.own.events("keys-released")]
        assert kinds == [["data", SHARE]]
        assert self.other.events("keys-released") == []
        assert "key-released" not in kinds_recorded(self.other.custodian)
        return caught.value


@asynccontextmanager
async def start_of(keyed: KeyedFederation, directory: Path) -> AsyncIterator[Start]:
    """Opens both custodians; no key is in any file when the story is over."""
    async with AsyncExitStack() as stack:
        own, other = [
            await stack.enter_async_context(office_of(keyed, party, directory))
            for party in ("alice", "aggregator")
        ]
        counting = CountingPlatform(keyed.federation.platform("alice"))
        yield Start(
            keyed=keyed,
            own=own,
            other=other,
            node=quoting(fresh_node(keyed, "alice"), counting),
            quotes=counting,
            log=RecordedLog(),
            began=[],
        )
    check_no_key_on_disk(directory, keyed.secrets.values())
