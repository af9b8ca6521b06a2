"""A thousand of each at once, on every port: honest nodes get through meanwhile.

The server and bob's custodian have a process of their own, so that what it takes up is
its own. A flood lasts until the honest node is through, and longer than that.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.support.custodian_on_disk import unwarranted
from tests.support.custodian_port import custodian_line
from tests.support.federation_in_memory import Federation
from tests.support.floods import KINDS, Connect, Target, flood
from tests.support.recorded_log import Event, read_events
from tests.support.running import Run
from tests.support.serving_process import addresses_in, federation_in
from tests.support.whole_run import make_scene, sources, task

from cloister.custody.service import METHOD as CUSTODY
from cloister.federation.messages import RECEIVE
from cloister.plan.site import Address
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.enrolling import enrol
from cloister.ratls.enrolment_service import METHOD as ENROLMENT
from cloister.ratls.refusal_log import TOLD_PER_MINUTE

# What three thousand connections may take; honest peers take the same each.
GROWTH_MEBIBYTES = 300
FILES = 8192
# Less than strangers have: nobody is let in only when they are gone.
PATIENCE_SECONDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A process that serves.

    Attributes:
        process: It.
        directory: Its directory.
        federation: Whose server it is.
        addresses: Its ports, by name.
    """

    process: subprocess.Popen[str]
    directory: Path
    federation: Federation
    addresses: dict[str, Address]

    def targets(self) -> list[Target]:
        """Returns its ports, as strangers see them."""
        hellos = {
            party: ClientEnrolment(self.federation.node(party)).hello()
            for party in ("alice", "bob")
        }
        methods = {"enrolment": ENROLMENT, "training": RECEIVE, "custodian": CUSTODY}
        return [
            Target(
                address=self.addresses[name],
                method=method,
                hello=hellos["bob" if name == "custodian" else "alice"],
            )
            for name, method in methods.items()
        ]

    def mebibytes(self) -> int:
        """Returns the memory that it has."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [line] = [it for it in status.splitlines() if it.startswith("VmRSS")]
        return int(line.split()[1]) // 1024

    def events(self, party: str) -> list[Event]:
        return read_events(self.directory / "run" / "logs" / f"{party}.jsonl")


@contextmanager
def serving(directory: Path, how: str) -> Iterator[Served]:
    # As a system usually starts a process: with room for 1,024 files.
    usual = ["/bin/sh", "-c", 'ulimit -Sn 1024 && exec "$@"', "serve"]
    command = [sys.executable, "-m", "tests.support.serving_process", str(directory)]
    process = subprocess.Popen(  # noqa: S603 - our own program
        [*usual, *command, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": os.pathsep.join(it for it in sys.path if it)},
    )
    with process:
        try:
            assert process.stdout is not None
            addresses = addresses_in(process.stdout.readline())
            yield Served(
                process=process,
                directory=directory,
                federation=federation_in(directory / "federation"),
                addresses=addresses,
            )
        finally:
            process.kill()


@pytest.fixture(scope="module", autouse=True)
def _room_for_a_flood() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1] if before[1] >= 0 else FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], hard), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served"), "open") as served:
        yield served


@pytest.mark.parametrize(("connect", "count"), KINDS.values(), ids=KINDS)
def test_a_thousand_at_each_port_keep_no_honest_node_out(
    run: Run, served: Served, connect: Connect, count: int
) -> None:
    bob = unwarranted(served.federation.node("bob"))
    before = served.mebibytes()
    told = len(served.events("aggregator")), len(served.events("bob-custodian"))

    async def story() -> None:
        async with flood(connect, count, served.targets()) as made:
            assert made >= 2 * count
            async with custodian_line(bob, served.addresses["custodian"]) as line:
                await line.first_warrant(patience_seconds=PATIENCE_SECONDS)
                enrolled = await enrol(bob, served.addresses["enrolment"])
            assert enrolled.admittance.server.party == "aggregator"
            assert served.mebibytes() - before < GROWTH_MEBIBYTES

    run(story())
    assert served.process.poll() is None
    # Thirty of strangers a minute, and what was done for the honest node.
    server, custodian = served.events("aggregator"), served.events("bob-custodian")
    for lines, before_it in zip((server, custodian), told, strict=True):
        assert len(lines) - before_it <= 2 * TOLD_PER_MINUTE + 5
    epoch = bob.warrant.current.terms.epoch
    admitted = [it for it in server if it["event"] == "peer-admitted"]
    assert [it["epoch"] for it in admitted] == list(range(1, epoch + 1))
    assert {it["peer"] for it in admitted} == {"bob"}


def test_a_run_goes_on_to_its_end_in_a_flood_of_everything(
    run: Run, tmp_path: Path
) -> None:
    async def story(served: Served) -> None:
        scene = replace(
            make_scene(tmp_path / "workers", served.federation),
            enrolment=served.addresses["enrolment"],
            training=served.addresses["training"],
        )
        bob, data = scene.node("bob"), sources()
        async with AsyncExitStack() as stack:
            for connect, count in KINDS.values():
                flooding = flood(connect, count // 10, served.targets())
                await stack.enter_async_context(flooding)
            line = await stack.enter_async_context(
                custodian_line(bob, served.addresses["custodian"])
            )
            await line.first_warrant(patience_seconds=PATIENCE_SECONDS)
            await asyncio.gather(
                scene.work(bob, task(), data["bob"], custodian=line),
                scene.work(scene.node("alice"), task(), data["alice"]),
            )
            status = await asyncio.to_thread(served.process.wait, 15)
        assert status == 0
        for party in ("alice", "bob"):
            [finished] = scene.events(party, "finished")
            assert finished["rounds"] == served.federation.plan.training.rounds

    with serving(tmp_path / "served", "run") as served:
        run(story(served))
    events = served.events("aggregator")
    admitted = [it["peer"] for it in events if it["event"] == "peer-admitted"]
    assert sorted(map(str, admitted)) == ["alice", "bob"]
    # What is left to be told after that is of strangers alone.
    names = [it["event"] for it in events]
    after = set(names[names.index("model-sealed") + 1 :])
    assert after <= {"refusals-left-out"}
    strangers = [it for it in events if it["event"] == "peer-refused"]
    assert len(strangers) <= 2 * TOLD_PER_MINUTE
    made = sorted(it.name for it in (served.directory / "run").iterdir())
    assert made == ["audit.jsonl", "logs", "model.safetensors.age"]
