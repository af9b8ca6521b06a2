"""Processes that a benchmark starts, what they say, and the memory that they take."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from cloister.cli.interpreter import NODE_ENVIRONMENT

_HERE = Path(__file__).parent
_KEPT_LINES = 20
Event = dict[str, Any]


class Process:
    """A process whose standard output has an event in every line.

    Killed, by its own id, when the context ends; it has nothing to finish.

    Args:
        script: A file of this directory.
        arguments: Its arguments.

    Attributes:
        pid: Its id.
    """

    def __init__(self, script: str, *arguments: str | int | Path) -> None:
        self._name = f"{script} {arguments[0]}"
        self._process = subprocess.Popen(
            [sys.executable, _HERE / script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=NODE_ENVIRONMENT,
        )
        self.pid = self._process.pid
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._threads = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def tell(self, line: str = "go") -> None:
        """Writes a line to its standard input."""
        if self._process.stdin is None:
            raise RuntimeError("started with pipes")
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def next(self, *names: str, within: float) -> Event:
        """Returns its next event of one of these names.

        Args:
            names: Of events; others are passed over.
            within: Seconds to wait.

        Raises:
            RuntimeError: If it ends, fails, or does not say such a thing in time.
        """
        until = time.monotonic() + within
        while True:
            try:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise self._failed(f"no {' or '.join(names)} in {within:g} s") from None
            if event is None or event["event"] == "failed":
                raise self._failed(f"it ended: {event}")
            if event["event"] in names:
                return event

    def memory(self) -> Memory:
        """Returns what it takes now."""
        return Memory(self.pid)

    def forget_peak(self) -> None:
        """Has the kernel count the peak from here on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _failed(self, why: str) -> RuntimeError:
        time.sleep(0.2)  # for its last words
        return RuntimeError("\n".join([f"{self._name}: {why}", *self._errors]))

    def _read_events(self) -> None:
        for line in self._process.stdout or ():
            with contextlib.suppress(json.JSONDecodeError):
                self._events.put(json.loads(line))
        self._events.put(None)

    def _read_errors(self) -> None:
        self._errors.extend(line.rstrip() for line in self._process.stderr or ())


class Memory:
    """A process's memory at one moment.

    Args:
        pid: Whose.

    Attributes:
        resident: Bytes in memory now.
        peak: The most that there were at any time.
    """

    def __init__(self, pid: int) -> None:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        self.resident = int(fields["VmRSS"].split()[0]) * 1024
        self.peak = int(fields["VmHWM"].split()[0]) * 1024


def free_ports(count: int) -> tuple[int, ...]:
    """Returns ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return tuple(int(one.getsockname()[1]) for one in held)


@contextlib.contextmanager
def started(
    commands: Sequence[tuple[str | int | Path, ...]],
) -> Iterator[list[Process]]:
    """Lends several processes, each started from a script and its arguments."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Process(str(c[0]), *c[1:])) for c in commands]
