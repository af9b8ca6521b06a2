"""Flower at work: a SuperLink and two SuperNodes on this machine, over TLS.

Installed in a virtual environment of its own. Its processes are started in process
groups of their own, and ended by the numbers of these groups, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from flower_app import write_app
from rounds_processes import free_ports
from rounds_raw import write_certificates
from rounds_task import Size

VERSION = "1.41.0"
_NODES = 2
_START_SECONDS, _STOP_SECONDS = 60.0, 10.0
_POLL_SECONDS = 0.2
_CONNECTION = "here"


class PeerResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the peer took.

    Attributes:
        seconds: Of every round.
        peak: Bytes of memory that its ServerApp took at most.
    """

    seconds: list[float]
    peak: int


def cache_directory() -> Path:
    """Returns where the peer is installed unless it is said."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "cloister-benchmarks" / f"flwr-{VERSION}"


def install(directory: Path) -> Path:
    """Returns the peer's commands; installs it first if it is not there."""
    commands, done = directory / "bin", directory / f".installed-{VERSION}"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        subprocess.run(
            [commands / "pip", "install", "--quiet", f"flwr=={VERSION}", "numpy"],
            check=True,
        )
        done.touch()
    return commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Flower, waiting for a run.

    Attributes:
        commands: Where its commands are.
        place: Where its files go.
        environment: Of all its processes.
    """

    commands: Path
    place: Path
    environment: dict[str, str]

    def rounds(self, size: Size, count: int, *, within: float) -> PeerResult:
        """Runs so many rounds.

        Args:
            size: The model's size.
            count: Rounds.
            within: Seconds until it is given up.

        Raises:
            RuntimeError: If it does not end well.
        """
        result = self.place / f"result-{size.parameters}.json"
        result.unlink(missing_ok=True)
        config = (
            f"parameters={size.parameters} tensors={size.tensors}"
            f" rounds={count} result='{result}'"
        )
        app = str(self.place / "app")
        flwr = str(self.commands / "flwr")
        command = [flwr, "run", app, _CONNECTION, "-c", config]
        with (self.place / "run.log").open("ab") as log:
            ended = subprocess.run(
                command,
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                timeout=within,
                check=False,
            )
        if ended.returncode:
            raise RuntimeError(f"the peer takes no run\n{self.last_words()}")
        until = time.monotonic() + within
        while not result.exists():
            if time.monotonic() > until:
                raise RuntimeError(f"no rounds in {within:g} s\n{self.last_words()}")
            time.sleep(_POLL_SECONDS)
        return msgspec.json.decode(result.read_bytes(), type=PeerResult)

    def last_words(self) -> str:
        """Returns the ends of its logs."""
        return "\n".join(
            f"{path.name}: {path.read_text(errors='replace')[-1500:]}"
            for path in sorted(self.place.glob("*.log"))
        )


@contextlib.contextmanager
def peer(commands: Path, place: Path) -> Iterator[Peer]:
    """Lends the peer at work.

    Args:
        commands: What `install` returned.
        place: Where its files go.
    """
    write_certificates(place / "tls")
    write_app(place / "app")
    authority = place / "tls" / "ca.crt"
    link, *nodes = free_ports(1 + _NODES)
    home = place / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
        f'address = "127.0.0.1:{link}"\nroot-certificates = "{authority}"\n'
    )
    environment = {
        "PATH": f"{commands}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    found = Peer(commands=commands, place=place, environment=environment)
    tls = [
        *("--ssl-ca-certfile", authority),
        *("--ssl-certfile", place / "tls" / "server.crt"),
        *("--ssl-keyfile", place / "tls" / "server.key"),
    ]
    with contextlib.ExitStack() as stack:

        def start(name: str, port: int, *arguments: str | Path) -> None:
            command = (commands / name, *tls, "--host", "127.0.0.1", "--port", port)
            log = stack.enter_context((place / f"{name}-{port}.log").open("wb"))
            process = subprocess.Popen(
                [str(part) for part in (*command, *arguments)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            stack.callback(_end, process)
            _await_port(process, port, found)

        start("flower-superlink", link, "--disable-runtime-dependency-installation")
        for port in nodes:
            at = f"127.0.0.1:{link}"
            start(
                "flower-supernode",
                port,
                *("--superlink", at, "--root-certificates", authority),
            )
        yield found


def _await_port(process: subprocess.Popen[bytes], port: int, found: Peer) -> None:
    until = time.monotonic() + _START_SECONDS
    while _is_running(process.pid) and time.monotonic() < until:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"the peer does not start\n{found.last_words()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, in order if it can, and what is left of its group.

    It is not waited for before: until then the group's number is nobody else's.
    """
    process.send_signal(signal.SIGINT)
    until = time.monotonic() + _STOP_SECONDS
    while _is_running(process.pid) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _is_running(child: int) -> bool:
    """Returns whether a child has not ended; leaves it to be waited for."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child, options) is None
