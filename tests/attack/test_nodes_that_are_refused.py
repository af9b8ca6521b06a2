"""Nodes that are not what the plan wants: refused, and both sides' logs say why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation, quoting
from tests.support.hostile_platforms import ChangingPlatform, DebugPlatform
from tests.support.open_server import OpenServer, open_server
from tests.support.plan_tree import measurement_of
from tests.support.running import Run
from tests.support.whole_run import Scene, make_scene, sources, task

from cloister.errors import CloisterError, RefusedByPeer, VerificationError
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node

Two = tuple[Federation, Federation]
Make = Callable[[Federation, Federation], Node]
ONE_BYTE_MORE = b"# the task of the tests\n\n"


@pytest.fixture
def two(federation: Federation, other_federation: Federation) -> Two:
    return federation, other_federation


class CarelessCustodian:
    """A party's custodian that looks at nothing: the node has its warrant already."""

    def __init__(self) -> None:
        self.mark: Mark | None = None

    async def renew(self) -> None:
        """Lets the node keep the warrant that it has."""

    async def deposit(self, mark: Mark) -> None:
        self.mark = mark


def scene_at(port: OpenServer, federation: Federation) -> Scene:
    """Returns the scene of an open server."""
    scene = make_scene(port.directory, federation, patience_seconds=5)
    return replace(scene, enrolment=port.enrolment, training=port.training)


async def work(scene: Scene, node: Node) -> None:
    """Runs a worker whose own party would never stop it."""
    data = sources()[node.party]
    await scene.work(node, task(), data, custodian=CarelessCustodian())


async def try_to_work(scene: Scene, node: Node) -> CloisterError:
    """Runs a worker that must be refused, or refuse; returns why."""
    with pytest.raises(VerificationError) as caught:
        await work(scene, node)
    [failed] = scene.events(node.party, "failed")
    assert failed["code"] == caught.value.code
    assert failed["exit_code"] == 3
    return caught.value


def other_code(federation: Federation, _: Federation) -> Node:
    other = measurement_of("worker", task_source=ONE_BYTE_MORE)
    return federation.node("alice", measurement=other)


def debug(federation: Federation, _: Federation) -> Node:
    platform = DebugPlatform(federation.platform("alice"))
    return quoting(federation.node("alice"), platform)


def other_root(federation: Federation, other: Federation) -> Node:
    return quoting(federation.node("alice"), other.platform("alice"))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (other_code, "appraisal-measurement"),
        (debug, "appraisal-debug"),
        (other_root, "root-untrusted"),
    ],
)
def test_a_worker_that_is_not_what_the_plan_wants_is_refused(
    run: Run,
    two: Two,
    server: Node,
    tmp_path: Path,
    make: Make,
    code: str,
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            error = await try_to_work(scene_at(port, two[0]), make(*two))
            assert isinstance(error, RefusedByPeer)
            assert error.code == code

            [line] = port.events("peer-refused")
            assert line["code"] == code
            assert error.got[:80] in str(line["reason"])
            assert port.admitted() == []
            assert port.files() == ["logs/aggregator.jsonl", "logs/alice.jsonl"]

    run(story())


def server_of_other_code(federation: Federation, _: Federation) -> Node:
    other = measurement_of("server", task_source=ONE_BYTE_MORE)
    return federation.node("aggregator", measurement=other)


def debug_server(federation: Federation, _: Federation) -> Node:
    platform = DebugPlatform(federation.platform("aggregator"))
    return quoting(federation.node("aggregator"), platform)


def server_of_other_root(federation: Federation, other: Federation) -> Node:
    platform = other.platform("aggregator")
    return quoting(federation.node("aggregator"), platform)


def server_that_changed(federation: Federation, _: Federation) -> Node:
    """Its certificate's quote is good; what it runs by now is something else."""
    other = measurement_of("server", task_source=ONE_BYTE_MORE)
    platform = ChangingPlatform(
        federation.platform("aggregator"),
        later=federation.platform("aggregator", measurement=other),
    )
    return quoting(federation.node("aggregator"), platform)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (server_of_other_code, "appraisal-measurement"),
        (debug_server, "appraisal-debug"),
        (server_of_other_root, "root-untrusted"),
        (server_that_changed, "appraisal-measurement"),
    ],
)
def test_a_server_that_is_not_what_the_plan_wants_is_refused(
    run: Run,
    two: Two,
    alice: Node,
    tmp_path: Path,
    make: Make,
    code: str,
) -> None:
    async def story() -> None:
        node = make(*two)
        async with open_server(node, tmp_path) as port:
            error = await try_to_work(scene_at(port, two[0]), alice)
            assert not isinstance(error, RefusedByPeer)
            assert error.code == code

            [line] = port.events("refused-by-peer")
            assert line["code"] == code
            assert port.admitted() == []
            assert port.coordinator.traffic.received == 0
            assert port.files() == ["logs/aggregator.jsonl", "logs/alice.jsonl"]

    run(story())


def test_a_refused_worker_stops_nobody_else(
    run: Run, two: Two, server: Node, bob: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            scene = scene_at(port, two[0])
            working = asyncio.ensure_future(work(scene, bob))
            error = await try_to_work(scene, other_code(*two))
            assert error.code == "appraisal-measurement"
            good = asyncio.ensure_future(work(scene, two[0].node("alice")))
            metrics = await port.coordinator.run(patience_seconds=10)
            port.coordinator.release()
            await asyncio.gather(working, good)
            assert metrics["accuracy"] > 0.9
            assert sorted(port.admitted()) == [("alice", 1), ("bob", 1)]

    run(story())
