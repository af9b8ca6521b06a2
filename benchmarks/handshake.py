"""Milliseconds per mutual enrolment, split by part, and the admission of 1,000 nodes.

Everything is attested on the simulated platform: both sides quote and verify each
time. The parts are timed without a network, both sides in one process; the whole over
real sockets, with the server in a process of its own. What the parts do not explain is
TLS, gRPC and threads. Quotes of real hardware take longer; that is the machine's time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from cloister.cli.interpreter import NODE_ENVIRONMENT

# Before gRPC is imported, as in a node.
os.environ.update(NODE_ENVIRONMENT)

import grpc
import structlog

from cloister.errors import CloisterError
from cloister.plan.plan import Role
from cloister.plan.site import Address
from cloister.ratls.admission import new_authority
from cloister.ratls.admission_table import AdmissionTable, Admitted
from cloister.ratls.certificate import make_certificate
from cloister.ratls.challenge import MAX_MESSAGE_BYTES
from cloister.ratls.channels import (
    enrolment_credentials,
    listen,
    server_options,
)
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.enrolling import enrol
from cloister.ratls.enrolment_service import EnrolmentService
from cloister.ratls.limits import Limits
from cloister.ratls.server_enrolment import ServerEnrolment
from cloister.ratls.testimony import Testimony
from reporting import Figure, Parts, report, resident_bytes
from scene import SERVER, Scene, prepare

REACH_MS = 50.0
LIFE = timedelta(days=30)
AT_ONCE = 16


class Unrecorded:
    """No audit: what is timed is the handshake, not a disk."""

    def node_admitted(
        self, testimony: Testimony, collateral: str | None, *, admitted: Admitted
    ) -> None:
        """Records nothing."""

    def node_refused(
        self,
        testimony: Testimony,
        collateral: str | None,
        *,
        role: Role,
        party: str,
        error: CloisterError,
    ) -> None:
        """Records nothing."""

    def admission_withdrawn(self, admitted: Admitted, error: CloisterError) -> None:
        """Records nothing."""


def in_parts(scene: Scene, times: int) -> Parts:
    """Enrols without a network, so many times; returns what each part took."""
    parts = Parts()
    for number in range(1, times + 1):
        server, client = scene.node(SERVER), scene.node("worker-0", epoch=number)
        at = server.clock()
        certificate = make_certificate(
            server.identity, server.platform, at=at, life=LIFE
        )
        table = AdmissionTable(server.clock)
        authority = new_authority(at=at, life=LIFE)
        mine = ClientEnrolment(client)
        theirs = ServerEnrolment(
            server, authority=authority, table=table, audit=Unrecorded()
        )
        parts.time("1 verify certificate", lambda: mine.pin(certificate))  # noqa: B023
        challenge = parts.time(
            "2-3 hello, challenge",
            lambda: theirs.challenge(mine.hello()),  # noqa: B023
        )
        answer = parts.time(
            "4 sign transcript",
            lambda: mine.answer(challenge),  # noqa: B023
        )
        proof = parts.time(
            "5 check warrant, quote",
            lambda: theirs.prove(answer),  # noqa: B023
        )
        own = parts.time(
            "6 verify server, quote",
            lambda: mine.prove(proof),  # noqa: B023
        )
        _, admission = parts.time(
            "7 verify client, admit",
            lambda: theirs.admit(own),  # noqa: B023
        )
        parts.time("7 take admission", lambda: mine.finish(admission))  # noqa: B023
    return parts


async def serve(directory: Path, port: int) -> None:
    """Opens an enrolment port until standard input closes; then says what it used."""
    node = Scene(directory).node(SERVER)
    at = node.clock()
    certificate = make_certificate(node.identity, node.platform, at=at, life=LIFE)
    table = AdmissionTable(node.clock)
    service = EnrolmentService(
        node,
        authority=new_authority(at=at, life=LIFE),
        table=table,
        audit=Unrecorded(),
        log=structlog.wrap_logger(structlog.ReturnLogger(), processors=[_drop]),
        on_admitted=lambda _: None,
        # One party's node is timed again and again.
        limits=Limits(enrolments_a_minute=1_000_000),
    )
    server = grpc.aio.server(options=server_options(MAX_MESSAGE_BYTES))
    server.add_generic_rpc_handlers((service,))
    address = Address("127.0.0.1", port)
    listen(server, address, enrolment_credentials(node.identity, certificate))
    await server.start()
    before = resident_bytes()
    print(json.dumps({"listening": True}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    used = {
        "admitted": len(table.admitted()),
        "cpu_seconds": time.process_time(),
        "grown_bytes": resident_bytes() - before,
    }
    print(json.dumps(used), flush=True)
    await server.stop(0)


def _drop(*_: object) -> str:
    return ""


async def one_by_one(scene: Scene, address: Address, times: int) -> list[float]:
    """Returns the milliseconds of each of so many enrolments over real sockets."""
    spent = []
    for number in range(times):
        node = scene.node("worker-0", epoch=number + 1)
        began = time.perf_counter()
        await enrol(node, address)
        spent.append((time.perf_counter() - began) * 1000)
    return spent


async def all_at_once(scene: Scene, address: Address, count: int) -> float:
    """Returns the seconds until so many nodes were admitted, some at a time."""
    nodes = [scene.node(f"worker-{number}") for number in range(1, count + 1)]
    turn = asyncio.Semaphore(AT_ONCE)

    async def admit(number: int) -> None:
        async with turn:
            await enrol(nodes[number], address)

    began = time.perf_counter()
    await asyncio.gather(*(admit(number) for number in range(count)))
    return time.perf_counter() - began


def figures_of(directory: Path, *, times: int, nodes: int) -> list[Figure]:
    """Measures everything."""
    prepare(directory, nodes + 1)
    scene = Scene(directory)
    parts = in_parts(scene, times)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--serve", str(directory), str(port)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        if server.stdin is None or server.stdout is None:
            raise RuntimeError("started with pipes")
        server.stdout.readline()
        address = Address("127.0.0.1", port)
        whole = asyncio.run(one_by_one(scene, address, times))
        seconds = asyncio.run(all_at_once(scene, address, nodes))
        server.stdin.close()
        used = json.loads(server.stdout.readline())
    if used["admitted"] != nodes + 1:
        raise RuntimeError(f"{used['admitted']} nodes were admitted")
    total = statistics.median(whole)
    medians = parts.medians()
    return [
        Figure(
            name="mutual enrolment, median",
            value=total,
            unit="ms",
            reach=f"at most {REACH_MS:g}",
            ok=total <= REACH_MS,
        ),
        *(Figure(name=f"  {n}", value=v, unit="ms") for n, v in medians.items()),
        Figure(
            name="  TLS, gRPC, threads",
            value=total - sum(medians.values()),
            unit="ms",
        ),
        Figure(name=f"admission of {nodes} nodes", value=seconds, unit="s"),
        Figure(name="  a node", value=seconds / nodes * 1000, unit="ms"),
        Figure(
            name="  server memory a node",
            value=used["grown_bytes"] / nodes / 1024,
            unit="KiB",
        ),
        Figure(
            name="  server CPU a node",
            value=used["cpu_seconds"] / (nodes + times) * 1000,
            unit="ms",
        ),
    ]


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("DIR", "PORT"))
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(Path(options.serve[0]), int(options.serve[1])))
        return
    with tempfile.TemporaryDirectory() as directory:
        figures = figures_of(Path(directory), times=options.times, nodes=options.nodes)
    report(
        "mutual enrolment, simulated platform, server and client on one machine",
        figures,
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
