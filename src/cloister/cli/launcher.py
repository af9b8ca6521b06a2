"""Starts all nodes of a plan on this machine and sees them through to the end.

Each node is a process of its own with a clean environment, its own session and a
tether: if the launcher dies, however it dies, the tether is cut and the node stops. The
first node to fail decides how the run ends; the others are stopped then.
"""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cloister.cli.exit_codes import ExitCode
from cloister.cli.interpreter import NODE_ENVIRONMENT, node_command
from cloister.errors import PlatformError
from cloister.plan.plan import Plan

Event = dict[str, object]

# After a polite signal a node has this long to stop in order.
_STOP_SECONDS = 15.0
_MAX_LINE_BYTES = 1024 * 1024
_KEPT_STDERR_BYTES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        code: The exit code of the first node that failed; OK if none did.
        failed_party: That node's party.
        failure: Its last words, if it failed with an error of ours.
        stderr: What it wrote to stderr, when it failed in another way.
    """

    code: int
    failed_party: str | None = None
    failure: Event | None = None
    stderr: str = ""


class Launcher:
    """Runs the nodes of one plan.

    Args:
        plan: The plan.
        plan_path: Its file; sites lie where `init` puts them.
        on_event: Told of every event of every node, as it comes.
    """

    def __init__(
        self, plan: Plan, plan_path: Path, *, on_event: Callable[[Event], None]
    ) -> None:
        self._plan = plan
        self._plan_path = plan_path
        self._on_event = on_event
        self._failures: dict[str, Event] = {}

    async def run(self) -> RunOutcome:
        """Starts every node and waits until all have ended.

        Raises:
            PlatformError: If a process cannot be started.
        """
        nodes: dict[asyncio.Task[tuple[int, str]], str] = {}
        processes: list[Process] = []
        try:
            for party in self._plan.party:
                process = await self._start(party.name, party.role)
                processes.append(process)
                nodes[asyncio.create_task(self._follow(process, party.name))] = (
                    party.name
                )
            return await self._until_end(nodes)
        finally:
            await _stop(processes)
            await asyncio.gather(*nodes, return_exceptions=True)

    async def _until_end(
        self, nodes: dict[asyncio.Task[tuple[int, str]], str]
    ) -> RunOutcome:
        pending = set(nodes)
        while pending:
            done, pending = await asyncio.wait(
                pending, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                code, stderr = task.result()
                if code != ExitCode.OK:
                    party = nodes[task]
                    failure = self._failures.get(party)
                    return RunOutcome(
                        code=code if code > 0 else ExitCode.PLATFORM,
                        failed_party=party,
                        failure=failure,
                        stderr="" if failure else stderr,
                    )
        return RunOutcome(code=ExitCode.OK)

    async def _start(self, party: str, role: str) -> Process:
        arguments = [role, "--plan", str(self._plan_path), "--json", "--tethered"]
        if role == "worker":
            arguments += ["--party", party]
        try:
            return await asyncio.create_subprocess_exec(
                *node_command(arguments),
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env=NODE_ENVIRONMENT,
                # Ctrl-C at a terminal reaches the launcher alone, which stops the
                # nodes in order.
                start_new_session=True,
                limit=_MAX_LINE_BYTES,
            )
        except OSError as error:
            raise PlatformError(
                f"cannot start the node of {party!r}",
                code="node-unstartable",
                got=error.strerror or "an error",
            ) from error

    async def _follow(self, process: Process, party: str) -> tuple[int, str]:
        if process.stdout is None or process.stderr is None:
            raise RuntimeError("a node is started with pipes")
        errors = asyncio.create_task(_tail(process.stderr))
        async for line in process.stdout:
            try:
                event = msgspec.json.decode(line, type=dict[str, object])
            except msgspec.DecodeError:
                continue  # a task may print; that is no event
            error = event.get("error")
            if isinstance(error, dict):  # before the node had a log
                event = {"event": "failed", "party": party, **error}
            if event.get("event") == "failed":
                self._failures[party] = event
            self._on_event(event)
        return await process.wait(), await errors


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while chunk := await stream.read(4096):
        kept = (kept + chunk)[-_KEPT_STDERR_BYTES:]
    return kept.decode(errors="replace")


async def _stop(processes: list[Process]) -> None:
    """Stops whatever still runs: politely, then for good."""
    running = [p for p in processes if p.returncode is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    waits = [asyncio.ensure_future(p.wait()) for p in running]
    if waits:
        await asyncio.wait(waits, timeout=_STOP_SECONDS)
    for process in running:
        if process.returncode is None:
            process.kill()
            await process.wait()
