"""Processes that are kept running: whoever ends is started again at once.

What a system's own supervisor does for services (``Restart=always``). A service that
did its work is left alone. One that ended with an error of its own is started again as
well, but that is a failure, and is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cloister.cli.exit_codes import ExitCode
from cloister.cli.interpreter import NODE_ENVIRONMENT

Event = dict[str, Any]

# What a server says that finds the run over: it had died after its last act.
_OVER = "run-exists"
# After an error, as a system's supervisor waits; after a signal it goes on at once.
_PAUSE_SECONDS = 1.0
_MOST_FAILURES = 5
_STOP_SECONDS = 15.0
_MAX_LINE_BYTES = 1024 * 1024
_KEPT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An end that no signal of ours explains.

    Attributes:
        service: Whose.
        status: The exit status.
        words: What it said last.
    """

    service: str
    status: int
    words: str


class Service:
    """One of the deployment's processes.

    Args:
        name: Its name.
        command: What starts it.
        on_event: Told of each event that it says, with its name.

    Attributes:
        name: Its name.
        starts: How often it was started.
        failures: Its ends with an error.
        done: Whether its work is done.
        is_unwanted: Whether it is not to be started again.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        on_event: Callable[[str, Event], None],
    ) -> None:
        self.name = name
        self.starts = 0
        self.failures: list[Failure] = []
        self.done = False
        self._command = [*_leash(), *command]
        self._on_event = on_event
        self._pidfd: int | None = None
        self._started = asyncio.Event()
        self.is_unwanted = False
        self._last_failed: Event = {}

    async def keep(self) -> None:
        """Keeps it running until its work is done, or it is stopped.

        Raises:
            RuntimeError: If it ends with an error again and again.
        """
        while not self.is_unwanted:
            status, stderr = await self._live_once()
            if status == ExitCode.OK or self._found_over():
                break
            if status < 0 or self.is_unwanted:  # below zero is a signal's number
                continue
            words = json.dumps(self._last_failed) if self._last_failed else stderr
            failure = Failure(service=self.name, status=status, words=words)
            self.failures.append(failure)
            if len(self.failures) > _MOST_FAILURES:
                raise RuntimeError(f"{self.name} fails again and again: {failure}")
            await asyncio.sleep(_PAUSE_SECONDS)
        self.done = True

    async def send(self, number: signal.Signals) -> None:
        """Sends a signal, to the next process if there is none at the moment."""
        while not self.done:
            await self._started.wait()
            # By a descriptor: a process id may already be somebody else's.
            with contextlib.suppress(ProcessLookupError):
                if self._pidfd is not None:
                    signal.pidfd_send_signal(self._pidfd, number)
                    return
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Ends it in order, or else for good, and does not start it again."""
        self.is_unwanted = True
        self._send_now(signal.SIGCONT)
        self._send_now(signal.SIGTERM)
        for _ in range(int(_STOP_SECONDS / 0.05)):
            if self._pidfd is None:
                return
            await asyncio.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """Ends it for good, and does not start it again."""
        self.is_unwanted = True
        self._send_now(signal.SIGKILL)

    def _send_now(self, number: signal.Signals) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _found_over(self) -> bool:
        return self._last_failed.get("code") == _OVER

    async def _live_once(self) -> tuple[int, str]:
        """Starts it; returns its exit status and its last words on stderr."""
        self._last_failed = {}
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=PIPE,  # its tether
            stdout=PIPE,
            stderr=PIPE,
            limit=_MAX_LINE_BYTES,
            env=NODE_ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for the benchmark
        )
        self.starts += 1
        self._pidfd = os.pidfd_open(process.pid)
        self._started.set()
        try:
            stderr, _ = await asyncio.gather(_tail(process), self._listen(process))
            return await process.wait(), stderr
        finally:
            self._started.clear()
            self._send_now(signal.SIGKILL)
            await process.wait()
            os.close(self._pidfd)
            self._pidfd = None

    async def _listen(self, process: Process) -> None:
        if process.stdout is None:
            raise RuntimeError("started with pipes")
        async for line in process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                event: Event = json.loads(line)
                if "error" in event and "event" not in event:  # before it had a log
                    event = {"event": "failed", **event["error"]}
                if event.get("event") == "failed":
                    self._last_failed = event
                self._on_event(self.name, event)


async def _tail(process: Process) -> str:
    if process.stderr is None:
        raise RuntimeError("started with pipes")
    kept = b""
    while chunk := await process.stderr.read(_KEPT_BYTES):
        kept = (kept + chunk)[-_KEPT_BYTES:]
    return kept.decode(errors="replace")


def _leash() -> tuple[str, ...]:
    """Returns what a command begins with that is to die with this process.

    Its tether tells it to stop in order; a process that was stopped does not hear it.
    """
    return ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
