"""A deployment whose secrets a test knows, and all that its processes say and leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
from tests.integration.conftest import (
    LIMIT_SECONDS,
    Deployment,
    Running,
)
from tests.support.canaries import Canaries


class Told(msgspec.Struct):
    """What a node's task told the test."""

    secrets: dict[str, str]
    written: list[str]


class Story:
    """A deployment, what is said of it, and what to look for.

    Attributes:
        deployment: The deployment.
        outside: Where people have what no custodian keeps: `told`, `tmp`, their files.
        canaries: Looks for every secret.
        said: All that any process wrote to stdout and stderr.
        processes: Command line and environment of each process, as others see them.
    """

    def __init__(self, directory: Path) -> None:
        self.deployment = Deployment(directory / "deployment")
        self.outside = directory / "outside"
        for name in ("told", "tmp"):
            (self.outside / name).mkdir(parents=True)
        self.canaries = Canaries()
        self.said: list[str] = []
        self.processes: dict[int, bytes] = {}
        self._started: list[Running] = []

    @property
    def tmp(self) -> Path:
        return self.outside / "tmp"

    def file(self, name: str, content: bytes) -> str:
        """Returns the path of a file of its owner's."""
        path = self.outside / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return str(path)

    def plant_told(self, command: str) -> list[str]:
        """Looks for what a node has; returns what files its code opened to write."""
        path = self.outside / "told" / command
        told = msgspec.json.decode(path.read_bytes(), type=Told)
        for name, secret in told.secrets.items():
            self.canaries.plant(f"{name} of a {command}", bytes.fromhex(secret))
        return told.written

    def start(self, *arguments: str) -> Running:
        """Starts a command where core files are asked for, and temporary ones land."""
        script = 'cd "$0"; ulimit -c unlimited 2>/dev/null; exec "$@"'
        command = [sys.executable, "-m", "cloister", *arguments]
        started = Running(
            ["/bin/sh", "-c", script, str(self.tmp), *command],
            environment={**os.environ, "TMPDIR": str(self.tmp)},
        )
        self._started.append(started)
        return started

    def close(self) -> None:
        """Ends whatever still runs."""
        for running in self._started:
            running.close()

    def do(self, *arguments: str, code: int = 0) -> str:
        """Runs a command to its end; returns what it said on stdout."""
        command = [sys.executable, "-m", "cloister", *arguments]
        done = subprocess.run(  # noqa: S603 - our own program
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self.tmp,
            timeout=LIMIT_SECONDS,
            env={**os.environ, "TMPDIR": str(self.tmp)},
        )
        self.said += [done.stdout, done.stderr]
        assert done.returncode == code, done.stderr
        return done.stdout

    def look_at(self, running: Running) -> None:
        """Keeps what everybody sees of a process and of all below it."""
        parents = parents_of_all()
        for pid in parents:
            line, at = [], pid
            while at and at != running.process.pid:
                at = parents.get(at, 0)
                line.append(at)
            if at:
                self.processes[pid] = self.processes.get(pid, b"") + seen_of(pid)

    def follow(self, running: Running, kinds: set[str]) -> None:
        """Reads a process's events to the end; looks around at those of some kinds."""
        while (line := running._lines.get(timeout=LIMIT_SECONDS)) is not None:
            self.said.append(line)
            if json.loads(line).get("event") in kinds:
                self.look_at(running)
        code, errors = running.finish()
        self.said.append(errors)
        assert code == 0, errors


def parents_of_all() -> dict[int, int]:
    """Returns the parent of every process of this machine."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        parents[int(path.parent.name)] = int(after_name[1])
    return parents


def seen_of(pid: int) -> bytes:
    seen = b""
    for name in ("cmdline", "environ", "comm"):
        try:
            seen += Path(f"/proc/{pid}/{name}").read_bytes() + b"\n"
        except OSError:
            continue  # ended, or nobody's but root's
    return seen
