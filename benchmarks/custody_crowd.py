"""A crowd of nodes at a custodian that has nothing to do for them, and its memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace

from cloister.custody.client import CustodianLine
from cloister.errors import CloisterError
from cloister.ratls.warrant import HeldWarrant
from custody_scene import LOG, Served, some_at_a_time
from scene import SERVER, Scene

# As long as nodes wait for a consent here; a run's site says minutes.
PATIENCE_SECONDS = 8.0


async def idle_kib(scene: Scene, custodian: Served, count: int) -> float:
    """Returns the KiB of each of so many sessions, open and silent after their proof.

    All are the own node's: another party's is not kept for longer than it needs.
    """
    node = replace(scene.node(SERVER), warrant=HeldWarrant())
    lines = [CustodianLine(node, custodian.address, log=LOG) for _ in range(count)]

    async def meet(line: CustodianLine) -> None:
        await line.first_warrant(patience_seconds=0)

    await meet(lines[0])
    before = await custodian.used()
    await some_at_a_time(lines[1:], meet)
    after = await custodian.used()
    await asyncio.gather(*(line.close() for line in lines))
    if after["events"] != {"custodian-listening": 1, "warrant-signed": count}:
        raise RuntimeError(f"not {count} idle sessions: {after['events']}")
    grown: int = after["resident_bytes"] - before["resident_bytes"]
    return grown / (count - 1) / 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What nodes cost that wait for a consent.

    Attributes:
        kib: Memory for each, at the worst moment.
        cores: Of this machine's, how many they keep the custodian busy with.
    """

    kib: float
    cores: float


async def waiting(scene: Scene, custodian: Served, count: int) -> Waiting:
    """Has so many nodes wait for a consent that is not there, and looks meanwhile."""
    node = replace(scene.node(SERVER), warrant=HeldWarrant())

    async def wait(seconds: float) -> None:
        line = CustodianLine(node, custodian.address, log=LOG)
        with contextlib.suppress(CloisterError):
            await line.first_warrant(patience_seconds=seconds)
        await line.close()

    await wait(0)
    now = before = await custodian.used()
    began, worst = time.perf_counter(), 0
    nodes = asyncio.gather(*(wait(PATIENCE_SECONDS) for _ in range(count)))
    while not nodes.done():
        await asyncio.wait([nodes], timeout=0.5)
        now = await custodian.used()
        worst = max(worst, now["resident_bytes"])
    await nodes
    events = now["events"]
    if "warrant-signed" in events or not events.get("node-refused"):
        raise RuntimeError(f"nodes did not wait for a consent: {events}")
    return Waiting(
        kib=(worst - before["resident_bytes"]) / count / 1024,
        cores=(now["cpu_seconds"] - before["cpu_seconds"])
        / (time.perf_counter() - began),
    )
