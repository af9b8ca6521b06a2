"""Processes that a launcher starts: nodes and custodians, each in a clean environment.

Each has its own session and a tether: if the launcher dies, however it dies, the tether
is cut and the process stops.

What such a process says on stdout are events alone, for it keeps what its task prints
apart (`cloister.cli.own_output`). Still, whatever bytes come, nothing else is heard.
"""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from cloister.cli.exit_codes import ExitCode
from cloister.cli.interpreter import NODE_ENVIRONMENT, node_command
from cloister.cli.line_cutter import LineCutter, printable
from cloister.cli.own_output import MAX_PRINTED_BYTES, PRINTED
from cloister.errors import PlatformError

Event = dict[str, object]
Printing = Literal["shown", "unheard"]

# After a polite signal a process has this long to stop in order.
_STOP_SECONDS = 15.0
_MAX_LINE_BYTES = 1024 * 1024
_KEPT_STDERR_BYTES = 8192
_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run, or one process of it, ended.

    Attributes:
        code: The exit code; of a run, that of the first process that failed.
        failed: Who that was: a party, or its custodian.
        failure: Its last words, if it failed with an error of ours.
        stderr: What it wrote to stderr, when it failed in another way.
        signal: Name of the signal that killed it; None where none did.
    """

    code: int
    failed: str | None = None
    failure: Event | None = None
    stderr: str = ""
    signal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One started process.

    Attributes:
        name: Who it is, to the user.
        process: The process.
    """

    name: str
    process: Process

    async def follow(
        self,
        on_event: Callable[[Event], None],
        *,
        prints: Printing = "unheard",
        **always: str,
    ) -> RunOutcome:
        """Returns how the process ended; tells of its events as they come.

        Args:
            on_event: Told of every event.
            prints: What becomes of an event `printed`: what a task prints.
            always: What stands in every event, also in one that came before a log.
        """
        if self.process.stdout is None or self.process.stderr is None:
            raise RuntimeError("a member is started with pipes")
        errors = asyncio.create_task(_tail(self.process.stderr))
        failure: Event | None = None
        async for line in _lines(self.process.stdout):
            event = _event_in(line)
            if event is not None and event["event"] == PRINTED:
                event = _printed(event) if prints == "shown" else None
            if event is None:
                continue
            event |= always
            if event.get("event") == "failed":
                failure = event
            on_event(event)
        code, stderr = await self.process.wait(), await errors
        return RunOutcome(
            # Below zero is a signal's number.
            code=code if code >= 0 else ExitCode.PLATFORM,
            failed=self.name,
            failure=failure,
            stderr="" if failure else stderr,
            signal=None if code >= 0 else _signal_name(-code),
        )


async def start_member(name: str, arguments: Sequence[str]) -> Member:
    """Starts ``cloister ARGUMENTS``, which must know ``--json`` and ``--tethered``.

    Raises:
        PlatformError: If it cannot be started.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *node_command([*arguments, "--json", "--tethered"]),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=NODE_ENVIRONMENT,
            # Ctrl-C at a terminal reaches the launcher alone, which stops the others
            # in order.
            start_new_session=True,
        )
    except OSError as error:
        raise PlatformError(
            f"cannot start the process of {name}",
            code="node-unstartable",
            got=error.strerror or "an error",
        ) from error
    return Member(name=name, process=process)


async def stop_members(members: Iterable[Member]) -> None:
    """Stops whatever still runs: politely, then for good."""
    running = [it.process for it in members if it.process.returncode is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    waits = [asyncio.ensure_future(p.wait()) for p in running]
    if waits:
        await asyncio.wait(waits, timeout=_STOP_SECONDS)
    for process in running:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    cutter = LineCutter(_MAX_LINE_BYTES)
    while piece := await stream.read(_PIECE_BYTES):
        for line in cutter.feed(piece):
            yield line
    yield cutter.end()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # one of those without a name


def _event_in(line: bytes) -> Event | None:
    """Returns the event in a line; None if it is anything else, whatever it is."""
    try:
        event = msgspec.json.decode(line, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    error = event.get("error")
    if "event" not in event and isinstance(error, dict):  # before it had a log
        event = {**error, "event": "failed"}
    kind = event.get("event")
    if not isinstance(kind, str):
        return None
    return None if kind == "failed" and not _is_worded(event) else event


def _is_worded(failure: Event) -> bool:
    """Returns whether the words are there in which it is told how a run ended."""
    words = ("code", "what", "expected", "got", "remedy")
    return {"code", "what"} <= failure.keys() and all(
        isinstance(failure.get(it, ""), str) for it in words
    )


def _printed(event: Event) -> Event | None:
    """Returns what a task printed, as it may be shown."""
    text = printable(str(event.get("text", ""))[:MAX_PRINTED_BYTES])
    return {"event": PRINTED, "text": text} if text else None


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while chunk := await stream.read(4096):
        kept = (kept + chunk)[-_KEPT_STDERR_BYTES:]
    # Anything may have written there, so it does not steer the reader's terminal.
    lines = kept.decode(errors="replace").split("\n")
    return "\n".join(printable(line) for line in lines)
