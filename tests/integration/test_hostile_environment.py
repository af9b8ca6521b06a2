"""A whole run whose every process is started in an environment made by an enemy.

What the enemy's variables do before our first line runs cannot be undone: his code may
run in that first process, and he could as well have started another program. What holds
is that the process which has keys is another one, and has nothing of his.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration.conftest import PARTIES, Deployment, Running

from cloister.cli.interpreter import NODE_ENVIRONMENT
from cloister.plan.site import parse_address
from cloister.ratls.insecure_fetch import open_unverified

# In every process that reads it; a node's own interpreter is isolated.
PLANTED = """
import os, sys
with open({marker!r}, "a") as marker:
    marker.write(f"{{sys.flags.isolated}}\\n")
"""
# A library of the system that no program of ours has in its memory.
PRELOADED = "libBrokenLocale.so.1"


class Proxy:
    """A proxy that counts who comes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.visits = 0
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    def _count(self) -> None:
        while True:
            visitor, _ = self._socket.accept()
            with visitor:
                if visitor.recv(1, socket.MSG_PEEK) == b"":
                    return
                self.visits += 1

    def close(self) -> None:
        """Visits it without a word, which ends it."""
        socket.create_connection(self._socket.getsockname()).close()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


@pytest.fixture
def enemy(tmp_path: Path) -> Path:
    """The enemy's directory."""
    directory = tmp_path / "enemy"
    planted = directory / "planted"
    planted.mkdir(parents=True)
    (directory / "tmp").mkdir()
    script = PLANTED.format(marker=str(directory / "marker"))
    (planted / "sitecustomize.py").write_text(script)
    (directory / "openssl.cnf").write_text("[default]\nMinProtocol = TLSv1\n")
    return directory


@pytest.fixture
def hostile(enemy: Path, proxy: Proxy) -> dict[str, str]:
    names = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTPS_PROXY")
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(enemy),
        **dict.fromkeys(names, proxy.address),
        "no_proxy": "",
        "GRPC_TRACE": "all",
        "GRPC_VERBOSITY": "DEBUG",
        "GRPC_SSL_CIPHER_SUITES": "ECDHE-ECDSA-AES128-GCM-SHA256",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(enemy / "roots.pem"),
        "GRPC_EXPERIMENTS": "all",
        "SSLKEYLOGFILE": str(enemy / "keys.log"),
        "SSL_CERT_FILE": str(enemy / "roots.pem"),
        "SSL_CERT_DIR": str(enemy),
        "OPENSSL_CONF": str(enemy / "openssl.cnf"),
        "PYTHONPATH": str(enemy / "planted"),
        "PYTHONSTARTUP": str(enemy / "planted" / "sitecustomize.py"),
        "PYTHONPYCACHEPREFIX": str(enemy / "tmp"),
        "PYTHONINSPECT": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONMALLOC": "debug",
        "MALLOC_PERTURB_": "170",
        "MALLOC_ARENA_MAX": "1",
        "LD_PRELOAD": PRELOADED,
        "LD_LIBRARY_PATH": str(enemy),
        "LD_BIND_NOW": "1",
        "TMPDIR": str(enemy / "tmp"),
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C",
        "TZ": "Asia/Tokyo",
    }


class Enemy:
    """Starts our commands in his environment, and lets them dump core."""

    def __init__(self, directory: Path, hostile: dict[str, str]) -> None:
        self._directory = directory
        self._hostile = hostile
        self.started: list[Running] = []

    def start(self, *arguments: str) -> Running:
        script = 'cd "$0"; ulimit -c unlimited 2>/dev/null; exec "$@"'
        own = [sys.executable, "-m", "cloister", *arguments, "--json"]
        shell = ["/bin/sh", "-c", script, str(self._directory), *own]
        self.started.append(Running(shell, environment=self._hostile))
        return self.started[-1]


@contextmanager
def starting(directory: Path, hostile: dict[str, str]) -> Iterator[Enemy]:
    enemy = Enemy(directory, hostile)
    try:
        yield enemy
    finally:
        for running in enemy.started:
            running.close()


def environment_of(running: Running) -> dict[str, str]:
    raw = Path(f"/proc/{running.process.pid}/environ").read_text()
    entries = [entry.partition("=") for entry in raw.split("\0") if entry]
    return {name: value for name, _, value in entries}


def assert_clean(running: Running) -> None:
    """Holds what a process has against all that it was given."""
    assert environment_of(running) == NODE_ENVIRONMENT
    maps = Path(f"/proc/{running.process.pid}/maps").read_text()
    assert PRELOADED not in maps
    assert "/planted/" not in maps
    limits = Path(f"/proc/{running.process.pid}/limits").read_text().splitlines()
    [core] = [line for line in limits if line.startswith("Max core file size")]
    assert core.split()[4:6] == ["0", "0"]


def assert_tls13_alone(*addresses: str) -> None:
    async def look() -> None:
        for text in addresses:
            address = parse_address(text)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await open_unverified(address, newest=ssl.TLSVersion.TLSv1_2)
            stream = await open_unverified(address, newest=ssl.TLSVersion.TLSv1_3)
            # Not `close`: the loop would be gone before TLS has said its last.
            stream.transport.abort()
            with contextlib.suppress(OSError):
                await stream.wait_closed()

    asyncio.run(look())


def test_a_run_in_a_hostile_environment_ends_as_any_other(
    deployment: Deployment, enemy: Path, hostile: dict[str, str], proxy: Proxy
) -> None:
    plan = ("--plan", str(deployment.plan))
    with starting(enemy, hostile) as host:
        custodians = [
            host.start("custodian", "serve", str(deployment.custodian(party)))
            for party in PARTIES
        ]
        ports = [
            str(each.wait_for("custodian-listening")["address"]) for each in custodians
        ]
        server = host.start("server", *plan)
        listening = server.wait_for("listening")
        ports += [str(listening["enrolment"]), str(listening["training"])]
        assert_tls13_alone(*ports)
        workers = [
            host.start("worker", "--party", it, *plan) for it in ("alice", "bob")
        ]
        for worker in workers:
            worker.wait_for("warranted")
        nodes = [server, *workers]
        for running in (*custodians, *nodes):
            assert_clean(running)
        for node in nodes:
            # No trace of gRPC's, and no prompt of the interpreter's.
            assert node.finish() == (0, "")
            # And of what its task prints, nothing.
            assert {it["event"] for it in node.rest()} >= {"round"}
        for custodian in custodians:
            custodian.interrupt()
            assert custodian.finish() == (130, "")
    assert deployment.sealed_model.exists()
    assert deployment.leftovers() == []
    assert proxy.visits == 0
    assert_left_behind(enemy, runs=len(PARTIES) * 2)
    assert [it["event"] for it in deployment.log("alice")][-1] == "finished"


def assert_left_behind(enemy: Path, *, runs: int) -> None:
    """His code ran once in each process that he started, and never in a node."""
    marks = (enemy / "marker").read_text().split()
    assert set(marks) == {"0"}
    assert len(marks) == runs
    assert not (enemy / "keys.log").exists()
    assert not list(enemy.glob("core*"))
    written = {it.relative_to(enemy).parts[0] for it in enemy.rglob("*")}
    assert written == {"marker", "openssl.cnf", "planted", "tmp"}


def test_a_node_that_crashes_in_a_run_leaves_no_core_file(
    deployment: Deployment, enemy: Path, hostile: dict[str, str]
) -> None:
    """With its warrant and its keys in memory, where core files are asked for."""
    with starting(enemy, hostile) as host:
        custodian = host.start("custodian", "serve", str(deployment.custodian("bob")))
        custodian.wait_for("custodian-listening")
        bob = host.start("worker", "--party", "bob", "--plan", str(deployment.plan))
        bob.wait_for("warranted")
        assert_clean(bob)
        for running in (bob, custodian):
            os.kill(running.process.pid, 11)
            code, errors = running.finish()
            assert code == -11
            # Nor does the interpreter print where it was.
            assert errors == ""
        with deployment.register("bob") as register:
            assert [it.epoch for it in register.warrants()] == [1]
    assert_left_behind(enemy, runs=2)
    assert deployment.leftovers() == []
