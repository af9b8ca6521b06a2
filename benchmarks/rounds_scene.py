"""Plans of runs that train nothing, and the custodians who watch over their nodes.

The server and the workers of a small run each have a custodian: a real one, with its
register on disk and its port, all of them in one process. Light workers, of which many
share a process, have one that only remembers. It would be on another machine anyway.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from structlog.typing import FilteringBoundLogger

from cloister.cli.host_time import utc_now
from cloister.custody.client import CustodianLine
from cloister.custody.custodian import Custodian as PartysCustodian
from cloister.custody.register import Register
from cloister.custody.serving import CustodianPort
from cloister.errors import VerificationError
from cloister.federation.custodian import Custodian
from cloister.plan.consent import format_consent, sign_consent
from cloister.plan.site import Address
from cloister.ratls.clock import FlooredClock
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.warrant import HeldWarrant
from cloister.storage.keys import KeyKind, Secret
from custody_scene import LOG, WARRANT_LIFE
from rounds_task import Size
from scene import Scene, prepare

_SETTINGS = "benchmark.json"
_PATIENCE_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        size: The model's size.
        workers: How many.
        rounds: How many.
        wire: The wire format.
        ports: Of enrolment, training, and the custodians.
        watched: Parties with a real custodian.
        burst: Rounds that workers train at a time; 0: all of them.
    """

    size: Size
    workers: int
    rounds: int
    wire: str
    ports: tuple[int, ...]
    watched: tuple[str, ...]
    burst: int = 0

    def address(self, number: int) -> Address:
        """Returns where one of the ports is."""
        return Address("127.0.0.1", self.ports[number])


def prepare_run(directory: Path, settings: Settings) -> None:
    """Writes the plan, the keys and the platforms, and the settings beside them.

    The plan is the demo's but for its optimiser, which keeps no state, and its wire.
    """
    directory.mkdir(parents=True)
    prepare(directory, settings.workers)
    path = directory / "plan.toml"
    text = path.read_text()
    lines = {
        "rounds": f"{settings.rounds}",
        "batch_size": "1",
        "optimizer": '{ name = "sgd", learning_rate = 1e-5 }',
        "schedule": '{ name = "constant" }',
        "evaluate_every": f"{settings.rounds}",
    }
    lines["wire"] = f'"{settings.wire}"'
    for key, value in lines.items():
        text, found = re.subn(
            rf"^{key} = .*$", f"{key} = {value}", text, count=1, flags=re.MULTILINE
        )
        if not found:
            raise RuntimeError(f"the plan has no line of {key}")
    path.write_text(text)
    (directory / _SETTINGS).write_bytes(msgspec.json.encode(settings))


class RunScene(Scene):
    """What `prepare_run` wrote, read again.

    Attributes:
        settings: What is measured.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        text = (directory / _SETTINGS).read_bytes()
        self.settings = msgspec.json.decode(text, type=Settings)

    @property
    def plan_text(self) -> bytes:
        """The plan's text, to the byte."""
        return (self.directory / "plan.toml").read_bytes()

    def consents(self) -> tuple[bytes, ...]:
        """Returns every party's consent, in plan order."""
        return tuple(
            format_consent(
                sign_consent(
                    self.plan, party=p.name, key=self.party_key(p.name), at=utc_now()
                )
            )
            for p in self.plan.party
        )

    @asynccontextmanager
    async def watched_node(
        self, party: str, *, log: FilteringBoundLogger
    ) -> AsyncIterator[tuple[Node, Custodian]]:
        """Lends a node, warranted by its custodian, and the line to that."""
        watched = self.settings.watched
        if party not in watched:
            yield self.node(party), Remembering()
            return
        node = replace(self.node(party), warrant=HeldWarrant())
        address = self.settings.address(2 + watched.index(party))
        line = CustodianLine(node, address, log=log)
        try:
            await line.first_warrant(patience_seconds=_PATIENCE_SECONDS)
            yield node, line
        finally:
            await line.close()


class Remembering:
    """Stands for a light worker's custodian; its warrant lasts long enough."""

    def __init__(self) -> None:
        self._mark: Mark | None = None

    @property
    def mark(self) -> Mark | None:
        """What was deposited last."""
        return self._mark

    async def renew(self) -> None:
        """Does nothing."""

    async def deposit(self, mark: Mark) -> None:
        """Remembers a mark."""
        self._mark = mark


class _NoKeys:
    def secret(self, key_id: str, *, kind: KeyKind) -> Secret:
        raise VerificationError(f"no {kind} {key_id!r} here", code="key-unknown")


@contextlib.contextmanager
def _open_custodian(scene: RunScene, party: str) -> Iterator[PartysCustodian]:
    key, at = scene.party_key(party), utc_now()
    consent = sign_consent(scene.plan, party=party, key=key, at=at)
    path = scene.directory / f"{party}.sqlite"
    with Register.create(path, party=party) as register:
        register.adopt(scene.plan_text, consent, at=at)
        yield PartysCustodian(
            party=party,
            key=key,
            register=register,
            keys=_NoKeys(),
            appraiser=scene.appraiser(FlooredClock(utc_now)),
            local_policy=None,
            warrant_life=WARRANT_LIFE,
        )


@asynccontextmanager
async def open_custodians(scene: RunScene) -> AsyncIterator[None]:
    """Opens the ports of all real custodians."""
    async with contextlib.AsyncExitStack() as stack:
        for number, party in enumerate(scene.settings.watched):
            custodian = stack.enter_context(_open_custodian(scene, party))
            address = scene.settings.address(2 + number)
            port = CustodianPort(custodian, address, log=LOG)
            await stack.enter_async_context(port)
        yield


def say(event: str, **values: object) -> None:
    """Tells the benchmark something, in the form of a log's line."""
    print(json.dumps({"event": event, **values}), flush=True)


def worker_names(first: int, count: int) -> Sequence[str]:
    """Returns the names of some workers."""
    return [f"worker-{number}" for number in range(first, first + count)]
