"""Every party's custodian in this process: real registers, ports and consents."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from structlog.typing import FilteringBoundLogger
from tests.support.addresses import free_addresses
from tests.support.custody_keys import KeysInMemory
from tests.support.federation_in_memory import WARRANT_LIFE, Federation, HandClock
from tests.support.plan_tree import Tree, toml_of
from tests.support.recorded_log import RecordedLog
from tests.support.registers import shown_by

from cloister.custody.client import CustodianLine
from cloister.custody.custodian import Custodian
from cloister.custody.key_store import KeyStore
from cloister.custody.register import Register
from cloister.custody.serving import CustodianPort
from cloister.plan.consent import sign_consent
from cloister.plan.plan import Plan, parse_plan, plan_hash
from cloister.plan.site import Address
from cloister.ratls.epochs import key_digest
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node

_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """One party's custodian at work.

    Attributes:
        custodian: The custodian.
        address: Where it listens.
        log: What it says.
    """

    custodian: Custodian
    address: Address
    log: RecordedLog
    _port: contextlib.AsyncExitStack

    @property
    def register(self) -> Register:
        """What it remembers."""
        return self.custodian.register

    async def open(self) -> None:
        """Opens the port."""
        port = CustodianPort(self.custodian, self.address, log=self.log.logger())
        await self._port.enter_async_context(port)

    async def shut(self) -> None:
        """Closes the port, as if the custodian's machine were off."""
        await self._port.aclose()

    @asynccontextmanager
    async def line(
        self, node: Node, *, log: FilteringBoundLogger | None = None
    ) -> AsyncIterator[CustodianLine]:
        """Lends a node's line, after the node got its first warrant."""
        line = CustodianLine(node, self.address, log=log or RecordedLog().logger())
        try:
            await line.first_warrant(patience_seconds=_PATIENCE_SECONDS)
            yield line
        finally:
            await line.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Custodians:
    """The custodians of a federation; what they remember outlives their ports.

    Attributes:
        federation: Whose.
        directory: Where the registers lie.
        plan: The plan that all of them consented to.
        clock: Their time.
        warrant_life: How long their warrants last.
        keys: What they keep for the parties, of those that keep anything.
    """

    federation: Federation
    directory: Path
    plan: Plan
    clock: HandClock = field(default_factory=HandClock)
    warrant_life: timedelta = WARRANT_LIFE
    keys: Mapping[str, KeyStore] = field(default_factory=dict)

    @asynccontextmanager
    async def office(self, party: str) -> AsyncIterator[Office]:
        """Opens a party's custodian; the first time, it consents to the plan."""
        [address] = free_addresses(1)
        async with contextlib.AsyncExitStack() as port:
            register = port.enter_context(self.register(party))
            office = Office(
                custodian=Custodian(
                    party=party,
                    key=self.federation.keys[party],
                    register=register,
                    keys=self.keys.get(party, KeysInMemory()),
                    appraiser=self.federation.appraiser(self.clock.floored()),
                    local_policy=None,
                    warrant_life=self.warrant_life,
                ),
                address=address,
                log=RecordedLog(),
                _port=await port.enter_async_context(contextlib.AsyncExitStack()),
            )
            await office.open()
            yield office

    @contextlib.contextmanager
    def register(self, party: str) -> Iterator[Register]:
        """Opens a party's register; made and filled with its consent if absent."""
        path = self.directory / f"{party}.sqlite"
        if path.exists():
            with Register.open(path) as register:
                yield register
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        consent = sign_consent(
            self.plan, party=party, key=self.federation.keys[party], at=self.clock()
        )
        with Register.create(path, party=party) as register:
            register.adopt(text_of(self.plan), consent, at=self.clock())
            yield register

    def mark(self, party: str) -> Mark | None:
        """Returns what a party's register says of the run, read from its disk."""
        with self.register(party) as register:
            return register.mark(self.plan.run_id)

    def remember(self, party: str, mark: Mark) -> Mark:
        """Has a party's register know that the run has come so far; returns what."""
        with self.register(party) as register:
            key = self.federation.node(party).identity.tls_spki
            digest = plan_hash(self.plan)
            at = self.clock()
            shown = shown_by(self.plan, key, party=party)
            terms = register.grant(
                shown, collateral=None, at=at, life=self.warrant_life
            )
            if terms.role == "server":  # it can speak of itself alone
                mark = msgspec.structs.replace(
                    mark, server_epoch=terms.epoch, server_key=key_digest(key)
                )
            return register.deposit(digest, tls_key=key, mark=mark, at=at)


def text_of(plan: Plan) -> bytes:
    """Returns a TOML text of `plan`."""
    tree: Tree = _without_none(msgspec.to_builtins(plan))
    text = toml_of(tree)
    assert plan_hash(parse_plan(text)) == plan_hash(plan)
    return text


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
