"""A custodian for benchmarks: what it keeps, made once; and its port, in a process.

It is the server's party's, and holds a share of every node's state key. So its own node
gets a warrant and the share here, and each worker the share.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import structlog
from typing_extensions import override

from cloister.cli.host_time import utc_now
from cloister.cli.node_process import _allow_connections
from cloister.custody import register_records
from cloister.custody.custodian import Custodian
from cloister.custody.key_store import RegisterKeys
from cloister.custody.keyring import IdentityFile, create_keyring
from cloister.custody.register import Register
from cloister.custody.register_file import RegisterFile
from cloister.custody.serving import CustodianPort
from cloister.plan.consent import sign_consent
from cloister.plan.site import Address
from cloister.ratls.clock import FlooredClock
from cloister.ratls.testimony import Testimony
from cloister.ratls.transcript import Transcript
from cloister.ratls.warrant import WarrantTerms
from cloister.storage.keys import KeyKind, key_id, new_key
from cloister.storage.model_vault import new_identity
from reporting import Parts, resident_bytes
from scene import SERVER, Scene, prepare

WARRANT_LIFE = timedelta(days=1)
SHARE: tuple[KeyKind, ...] = ("state-share",)
# So many nodes are at it at the same time, unless they all are.
AT_ONCE = 16
LOG = structlog.wrap_logger(
    structlog.ReturnLogger(), processors=[lambda *_: ""], wrapper_class=None
)
Item = TypeVar("Item")
# What is timed wherever a custodian is at work, for disks are not equally fast all day.
NODE_TO_DISK = "7 register: the node, to disk"
RELEASE_TO_DISK = "release: register, to disk"


class TimedRegister(Register):
    """A register that knows how long the disk took.

    Args:
        file: Its file.

    Attributes:
        parts: How long, by what was written.
    """

    def __init__(self, file: RegisterFile) -> None:
        super().__init__(file)
        self.parts = Parts()

    @override
    def note_foreign_warrant(
        self, testimony: Testimony, *, collateral: str | None, at: datetime
    ) -> WarrantTerms:
        note = super().note_foreign_warrant
        return self.parts.time(
            NODE_TO_DISK, lambda: note(testimony, collateral=collateral, at=at)
        )

    @override
    def release(
        self, transcript: Transcript, *, key_ids: Sequence[str], at: datetime
    ) -> int:
        release = super().release
        return self.parts.time(
            RELEASE_TO_DISK, lambda: release(transcript, key_ids=key_ids, at=at)
        )


def prepare_custody(directory: Path, workers: int) -> None:
    """Writes a plan whose state keys are shared, and the custodian's directories.

    Two of them: ``signed`` consented to the plan, ``unsigned`` did not.
    """
    share, other = new_key(), new_key()
    shares = {
        SERVER: key_id("state-share", share),
        "worker-0": key_id("state-share", other),
    }
    prepare(directory, workers, shares=shares)
    scene, at = Scene(directory), utc_now()
    consent = sign_consent(scene.plan, party=SERVER, key=scene.party_key(SERVER), at=at)
    for name in ("signed", "unsigned"):
        place = directory / name
        place.mkdir()
        identity = place / "identity.txt"
        identity.touch(mode=0o600)
        identity.write_text(new_identity()[0] + "\n")
        lock = IdentityFile(path=identity)
        create_keyring(place / "keyring.age", party=SERVER, lock=lock)
        with Register.create(place / "custodian.sqlite", party=SERVER) as register:
            keys = RegisterKeys.open(register, path=place / "keyring.age", lock=lock)
            keys.add("state-share", label="first", at=at, secret=share)
            if name == "signed":
                text = (directory / "plan.toml").read_bytes()
                register.adopt(text, consent, at=at)


@contextlib.contextmanager
def open_custodian(scene: Scene, name: str, *, parts: Parts) -> Iterator[Custodian]:
    """Lends the custodian in one of its directories.

    Args:
        scene: The federation.
        name: The directory.
        parts: Gets what the custodian's disk took.
    """
    place = scene.directory / name
    lock = IdentityFile(path=place / "identity.txt")
    with TimedRegister.open(place / "custodian.sqlite") as register:
        register.parts = parts
        yield Custodian(
            party=SERVER,
            key=scene.party_key(SERVER),
            register=register,
            keys=RegisterKeys.open(register, path=place / "keyring.age", lock=lock),
            appraiser=scene.appraiser(FlooredClock(utc_now)),
            local_policy=None,
            warrant_life=WARRANT_LIFE,
        )


async def serve(directory: Path, name: str, port: int) -> None:
    """Opens the port; says what it used for every line that is read, till their end.

    How long the disk took, it says of the time since the line before.
    """
    _allow_connections()
    # A thousand sessions of one node are measured; their host could not have them.
    register_records.WARRANTS_AN_HOUR = sys.maxsize  # type: ignore[misc]
    events: Counter[str] = Counter()

    def count(_: object, __: str, event: MutableMapping[str, Any]) -> str:
        events[event["event"]] += 1
        return ""

    log = structlog.wrap_logger(structlog.ReturnLogger(), processors=[count])
    parts = Parts()
    with open_custodian(Scene(directory), name, parts=parts) as custodian:
        async with CustodianPort(custodian, Address("127.0.0.1", port), log=log):
            print(json.dumps({}), flush=True)
            while await asyncio.to_thread(sys.stdin.readline):
                used = {
                    "resident_bytes": resident_bytes(),
                    "cpu_seconds": time.process_time(),
                    "events": events,
                    "to_disk_ms": parts.medians(),
                }
                parts.milliseconds.clear()
                print(json.dumps(used), flush=True)


class Served:
    """A custodian in a process of its own; made by `serving`."""

    def __init__(self, process: subprocess.Popen[str], address: Address) -> None:
        self._process = process
        self.address = address

    async def used(self) -> dict[str, Any]:
        """Returns what it uses now."""
        return await asyncio.to_thread(self.ask)

    def ask(self) -> dict[str, Any]:
        """Returns what it uses now; waits for the answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("started with pipes")
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        return said


@contextlib.contextmanager
def serving(script: str, directory: Path, name: str, port: int) -> Iterator[Served]:
    """Lends a custodian at work; `script` is to call `serve` for ``--serve``."""
    command = [sys.executable, script, "--serve", str(directory), name, str(port)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the custodian did not start")
            yield Served(process, Address("127.0.0.1", port))
        finally:
            process.kill()


async def some_at_a_time(
    items: Sequence[Item], act: Callable[[Item], Awaitable[object]]
) -> float:
    """Returns the seconds until all was done, some at a time."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(item: Item) -> None:
        async with turn:
            await act(item)

    began = time.perf_counter()
    await asyncio.gather(*(one(item) for item in items))
    return time.perf_counter() - began
