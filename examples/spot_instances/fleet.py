"""The processes of one run: started by hand, and killed where an instance is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_END_SECONDS = 60.0


class Fleet:
    """Everybody's custodian and node, each a process of its own.

    A context: whatever still runs at its end is killed.

    Args:
        plan: The plan.
        server: The server's party.
        workers: The workers' parties.
    """

    def __init__(self, plan: Path, *, server: str, workers: Sequence[str]) -> None:
        self._plan = plan
        self._server = server
        self._nodes = (server, *workers)
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        for party in self._nodes:
            place = self._plan.parent / "custodians" / party
            self._start(f"custodian of {party}", "custodian", "serve", str(place))
        for party in self._nodes:
            self.start(party)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in tuple(self._processes):
            self.kill(name)

    def start(self, party: str) -> None:
        """Starts a node: the first one, or one that goes on where another was killed.

        The command is the same. It finds the state that the other one left.
        """
        plan = ["--plan", str(self._plan)]
        if party == self._server:
            self._start(party, "server", *plan, "--json")
        else:
            self._start(party, "worker", "--party", party, *plan, "--json")

    def kill(self, name: str) -> None:
        """Kills a process: it can save nothing and tell nobody."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def rounds(self) -> Iterator[tuple[int, float]]:
        """Returns rounds with their mean loss as they are done, until the run is over.

        Of a server that is killed what it had said by then, and on with the next one.

        Raises:
            RuntimeError: If a server ends with an error.
        """
        over = False
        while not over:
            process = self._processes[self._server]
            with process:
                for line in process.stdout or ():
                    event = json.loads(line)
                    if event["event"] == "round":
                        yield int(event["round"]), float(event["loss"])
            over = process is self._processes.get(self._server)
            if over and process.returncode:
                raise RuntimeError(f"the server ended with {process.returncode}")

    def finish(self) -> None:
        """Waits for the workers, who end by themselves when the run is over."""
        for party in self._nodes:
            self._processes[party].wait(_END_SECONDS)

    def _start(self, name: str, *arguments: str) -> None:
        read = name == self._server
        self._processes[name] = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "cloister", *arguments, "--tethered"],
            # Cut when this program dies, so that nobody outlives it.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if read else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
