"""What a custodian releases in a second, and what a thousand waiting nodes cost it.

Everything is attested on the simulated platform, and the register is on this machine's
disk: a release is durable before it leaves, so the disk counts. The parts are timed
without a network, both sides in one process; the whole over real sockets, with the
custodian in a process of its own. What the parts do not explain is TLS, gRPC, threads,
and two processes that share this machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import tempfile
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Sequence,
)
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from cloister.cli.interpreter import NODE_ENVIRONMENT

# Before gRPC is imported, as in a node.
os.environ.update(NODE_ENVIRONMENT)

from cloister.cli.node_process import _allow_connections
from cloister.custody.calling import Callee
from cloister.custody.client import CustodianLine
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    KeysReleased,
    Met,
    decode_from_custodian,
)
from cloister.custody.node_share_meeting import NodeShareMeeting
from cloister.custody.share_line import fetch_share
from cloister.plan.site import Address
from cloister.ratls.challenge import encode_message
from cloister.ratls.exchange import Call, next_reply
from cloister.ratls.limits import USUAL_LIMITS
from cloister.ratls.node import Node
from cloister.ratls.warrant import HeldWarrant
from custody_crowd import idle_kib, waiting
from custody_parts import in_parts, sync_ms
from custody_scene import (
    LOG,
    RELEASE_TO_DISK,
    SHARE,
    Served,
    open_custodian,
    prepare_custody,
    serve,
    serving,
    some_at_a_time,
)
from reporting import Figure, Parts, report
from scene import SERVER, Scene

PHASE_SECONDS = 60.0
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Proved:
    """A node that proved itself over a real socket; its session is open."""

    meeting: NodeShareMeeting
    call: Call

    async def release(self) -> None:
        """Asks for the share, and opens it."""
        await self.call.write(encode_message(self.meeting.request()))
        released = await reply(self.call, KeysReleased)
        self.meeting.open(released)


async def reply(call: Call, wanted: type[Item]) -> Item:
    """Returns the custodian's next message."""
    message: Item = await next_reply(
        call,
        decode_from_custodian,
        wanted,  # type: ignore[type-var]
        peer=SERVER,
    )
    return message


@contextlib.asynccontextmanager
async def proved(node: Node, address: Address) -> AsyncIterator[Proved]:
    """Lends the session of a node that proved itself."""
    callee = Callee(
        address=address, whose=SERVER, section="shares", limits=USUAL_LIMITS
    )
    meeting = NodeShareMeeting(node, party=SERVER)
    pinned = meeting.pin(await callee.fetch_unverified_certificate())
    async with callee.call(pinned) as call:
        await call.write(encode_message(meeting.hello()))
        challenge = await reply(call, CustodianChallenge)
        await call.write(encode_message(meeting.answer(challenge)))
        proof = await reply(call, CustodianProof)
        evidence = await asyncio.to_thread(meeting.prove, proof)
        await call.write(encode_message(evidence))
        meeting.accept(await reply(call, Met))
        yield Proved(meeting, call)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The same thing done one after another, over real sockets.

    Attributes:
        ms: Of each.
        to_disk_ms: What of that the custodian's disk took, medians by what it wrote.
    """

    ms: float
    to_disk_ms: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What came over real sockets.

    Attributes:
        burst_seconds: For one release each to nodes that had proved themselves.
        shares_seconds: For one whole session each, some at a time.
        release: Releases in open sessions.
        share: Sessions of other parties' nodes.
        own: Sessions of the own node, with a warrant and a release.
    """

    burst_seconds: float
    shares_seconds: float
    release: Series
    share: Series
    own: Series


async def speed(
    scene: Scene, custodian: Served, *, nodes: Sequence[Node], times: int
) -> Speed:
    """Measures releases and whole sessions; of the first nodes, those of unknown ones.

    No node may ask for more than 60 releases in an hour.
    """

    async def share(node: Node) -> None:
        await fetch_share(
            node, custodian.address, party=SERVER, patience_seconds=0, log=LOG
        )

    shares = await one_by_one(custodian, nodes[:times], share)
    async with contextlib.AsyncExitStack() as stack:
        sessions: list[Proved] = []

        async def enter(node: Node) -> None:
            opened = proved(node, custodian.address)
            sessions.append(await stack.enter_async_context(opened))

        await some_at_a_time(nodes[times:], enter)
        burst_seconds = await some_at_a_time(sessions, Proved.release)
        releases = await one_by_one(custodian, sessions[:times], Proved.release)
    shares_seconds = await some_at_a_time(nodes[times:], share)
    own = [replace(scene.node(SERVER), warrant=HeldWarrant()) for _ in range(times)]
    return Speed(
        burst_seconds=burst_seconds,
        shares_seconds=shares_seconds,
        release=releases,
        share=shares,
        own=await one_by_one(
            custodian, own, lambda node: own_session(node, custodian.address)
        ),
    )


async def one_by_one(
    custodian: Served, items: Sequence[Item], act: Callable[[Item], Awaitable[object]]
) -> Series:
    """Returns what one thing after another took."""
    await custodian.used()
    spent = []
    for item in items:
        began = time.perf_counter()
        await act(item)
        spent.append((time.perf_counter() - began) * 1000)
    to_disk: dict[str, float] = (await custodian.used())["to_disk_ms"]
    return Series(ms=statistics.median(spent), to_disk_ms=to_disk)


async def own_session(node: Node, address: Address) -> None:
    """Gets a node of the custodian's own party its warrant and its key."""
    line = CustodianLine(node, address, log=LOG)
    try:
        await line.first_warrant(patience_seconds=0)
        await line.keys(SHARE, patience_seconds=0)
    finally:
        await line.close()


def figures_of(
    directory: Path, *, times: int, nodes: int, waiting_nodes: int
) -> list[Figure]:
    """Measures everything."""
    everybody = nodes + 2 * times
    prepare_custody(directory, everybody + 1)
    scene, parts = Scene(directory), Parts()
    workers = [scene.node(f"worker-{number}") for number in range(1, everybody + 1)]
    # Nodes that the register does not know yet, here and over sockets.
    with open_custodian(scene, "signed", parts=parts) as custodian:
        in_parts(scene, custodian, workers[:times], parts=parts)
    with custodian_at_work(directory, "signed") as served:
        fast = bounded(speed(scene, served, nodes=workers[times:], times=times))
    with custodian_at_work(directory, "signed") as served:
        idle = bounded(idle_kib(scene, served, waiting_nodes))
    with custodian_at_work(directory, "unsigned") as served:
        wait = bounded(waiting(scene, served, waiting_nodes))
    return [
        *throughput(fast, nodes=nodes),
        *session_figures(fast, parts.medians()),
        *release_figures(fast.release, parts.medians()),
        Figure(
            name="one page to this disk, median",
            value=sync_ms(directory, times),
            unit="ms",
        ),
        memory(f"each of {waiting_nodes} idle sessions", idle),
        memory(f"each of {waiting_nodes} nodes without a consent", wait.kib),
        Figure(name="  CPU while they wait", value=wait.cores, unit="cores"),
    ]


def throughput(fast: Speed, *, nodes: int) -> list[Figure]:
    """Returns how much a second."""
    return [
        Figure(
            name=f"releases to {nodes} nodes, each proved before",
            value=nodes / fast.burst_seconds,
            unit="a second",
        ),
        Figure(
            name=f"whole sessions of {nodes} nodes",
            value=nodes / fast.shares_seconds,
            unit="a second",
        ),
        Figure(name="session with a warrant, median", value=fast.own.ms, unit="ms"),
    ]


def session_figures(fast: Speed, parts: dict[str, float]) -> list[Figure]:
    """Returns what a session of another party's node takes, and its parts."""
    spent = parts | fast.share.to_disk_ms
    return [
        Figure(
            name="session of another's node, median", value=fast.share.ms, unit="ms"
        ),
        *(Figure(name=f"  {n}", value=v, unit="ms") for n, v in spent.items()),
        Figure(
            name="  TLS, gRPC, threads",
            value=fast.share.ms - sum(spent.values()),
            unit="ms",
        ),
    ]


def release_figures(release: Series, parts: dict[str, float]) -> list[Figure]:
    """Returns what a release in an open session takes, and its shares."""
    of_release = {n: v for n, v in parts.items() if n.startswith("release")}
    of_release |= release.to_disk_ms
    disk, all_parts = of_release[RELEASE_TO_DISK], sum(of_release.values())
    return [
        Figure(name="release in an open session, median", value=release.ms, unit="ms"),
        *(
            Figure(name=f"  {name}", value=part / release.ms * 100, unit="%")
            for name, part in (
                ("the register, to disk", disk),
                ("rules, key store, HPKE", all_parts - disk),
                ("gRPC, threads", release.ms - all_parts),
            )
        ),
    ]


def memory(of: str, kib: float) -> Figure:
    """Returns what something costs in memory."""
    return Figure(name=f"memory of {of}", value=kib, unit="KiB")


@contextlib.contextmanager
def custodian_at_work(directory: Path, name: str) -> Iterator[Served]:
    """Lends the custodian in one of its directories, at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(__file__, directory, name, port) as served:
        yield served


def bounded(measured: Coroutine[object, object, Item]) -> Item:
    """Returns what was measured, unless it takes too long."""

    async def within() -> Item:
        async with asyncio.timeout(PHASE_SECONDS):
            return await measured

    return asyncio.run(within())


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=3, metavar=("DIR", "NAME", "PORT"))
    options = parser.parse_args()
    if options.serve:
        directory, name, port = options.serve
        asyncio.run(serve(Path(directory), name, int(port)))
        return
    _allow_connections()
    with tempfile.TemporaryDirectory() as directory:
        figures = figures_of(
            Path(directory),
            times=options.times,
            nodes=options.nodes,
            waiting_nodes=options.waiting,
        )
    report(
        "custodian, simulated platform, register on this disk, all on one machine",
        figures,
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
