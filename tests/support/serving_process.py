"""A server and bob's custodian in a process of their own, until standard input ends.

Arguments: a directory, and ``open`` for a server that waits for its workers, or ``run``
for one that trains with them to the end. It makes a federation in the directory, and
says in one line of JSON where it listens.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# As for every node: it must be there before gRPC is.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"
os.environ["GRPC_VERBOSITY"] = "NONE"

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.custodian_on_disk import custodian_on_disk
from tests.support.custodians import text_of
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.open_server import open_server
from tests.support.whole_run import make_scene, task

from cloister.attestation.platforms.simulated.root import load_simulated_root
from cloister.cli.node_process import _allow_connections
from cloister.plan.plan import parse_plan
from cloister.plan.site import Address, parse_address

PLAN = "plan.toml"


def federation_in(directory: Path) -> Federation:
    """Returns the federation that the process made."""
    plan = parse_plan((directory / PLAN).read_bytes())
    return Federation(
        directory=directory,
        root=load_simulated_root(directory / "root"),
        plan=plan,
        keys={
            party.name: Ed25519PrivateKey.from_private_bytes(
                (directory / f"{party.name}.key").read_bytes()
            )
            for party in plan.party
        },
        owner="",
    )


def addresses_in(line: str) -> dict[str, Address]:
    """Returns where the process listens, from what it said."""
    said: dict[str, str] = json.loads(line)
    return {name: parse_address(text) for name, text in said.items()}


def _make(directory: Path) -> Federation:
    directory.mkdir(parents=True)
    federation = make_federation(directory)
    (directory / PLAN).write_bytes(text_of(federation.plan))
    for party, key in federation.keys.items():
        (directory / f"{party}.key").write_bytes(key.private_bytes_raw())
    return federation


async def _serve(directory: Path, *, to_the_end: bool) -> None:
    federation = _make(directory / "federation")
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(0, over.set)
    with custodian_of(federation, "bob", directory / "registers") as custodian:
        async with custodian_on_disk(custodian, directory / "run") as office:
            if to_the_end:
                scene = make_scene(directory / "run", federation)
                _say(scene.enrolment, scene.training, office.address)
                await scene.serve(scene.node("aggregator"), task())
                return
            server = federation.node("aggregator")
            async with open_server(server, directory / "run") as port:
                _say(port.enrolment, port.training, office.address)
                await over.wait()


def _say(*addresses: Address) -> None:
    names = ("enrolment", "training", "custodian")
    said = dict(zip(names, map(str, addresses), strict=True))
    os.write(1, json.dumps(said).encode() + b"\n")


@contextmanager
def _quiet() -> Iterator[None]:
    """A log for people would fill a pipe that nobody reads."""
    with Path("/dev/null").open("w") as nowhere:
        sys.stderr = nowhere
        yield


if __name__ == "__main__":
    with _quiet():
        _allow_connections()
        asyncio.run(_serve(Path(sys.argv[1]), to_the_end=sys.argv[2] == "run"))
