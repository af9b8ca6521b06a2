"""A network of one's own: each process in a network namespace, all on one bridge.

Needs root. `enter` moves the whole benchmark into a network and a mount namespace that
belong to it alone; everything that is made there is gone with its last process, however
that ends, and nothing of the machine's own network is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_TOOLS = ("ip", "mount", "unshare")
_NET, _BRIDGE = "10.77.0", "bridge"
# In the environment of a benchmark that has moved.
_MOVED = "CLOISTER_CHAOS_MOVED"
_LIMIT_SECONDS = 30.0


def can_move() -> bool:
    """Returns whether a network can be made here."""
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in _TOOLS)


def enter() -> None:
    """Starts this program again in namespaces of its own; returns if it is there.

    Raises:
        RuntimeError: If a tool fails.
    """
    if os.environ.get(_MOVED) == str(os.getpid()):
        _set_up()
        return
    os.environ[_MOVED] = str(os.getpid())
    command = ["unshare", "--net", "--mount", "--propagation", "private", "--"]
    # It keeps its id, by which the environment tells that it has moved.
    os.execvp(command[0], [*command, sys.executable, *sys.argv])  # noqa: S606


def _set_up() -> None:
    # Where `ip` keeps its names; this mount is nobody else's.
    _run("mount", "-t", "tmpfs", "none", "/run")
    _ip("link", "set", "lo", "up")
    _ip("link", "add", _BRIDGE, "type", "bridge")
    _ip("link", "set", _BRIDGE, "up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A namespace with one link.

    Attributes:
        name: The namespace's.
        address: IPv4 of its end of the link.
        link: The other end, at the bridge.
    """

    name: str
    address: str
    link: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command begins with that is to run there; its process id stays."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Cuts the link: from now on every packet is lost."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Restores the link."""
        _ip("link", "set", self.link, "up")

    def remove(self) -> None:
        """Removes the namespace, and the link with it."""
        _ip("netns", "delete", self.name)


def make_hosts(names: Sequence[str]) -> dict[str, Host]:
    """Returns a namespace for each name; `enter` has been called.

    Raises:
        RuntimeError: If a tool fails.
    """
    hosts = {}
    for number, name in enumerate(names, 1):
        # A link's name has 15 characters at most.
        host = Host(
            name=f"host-{number}", address=f"{_NET}.{number}", link=f"link-{number}"
        )
        _ip("netns", "add", host.name)
        ends = ("type", "veth", "peer", "name", "eth0", "netns", host.name)
        _ip("link", "add", host.link, *ends)
        _ip("link", "set", host.link, "master", _BRIDGE, "up")
        inside = ("-n", host.name)
        _ip(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip(*inside, "link", "set", link, "up")
        hosts[name] = host
    return hosts


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
