"""Nodes that are not what the plan wants: refused, and both sides' logs say why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation
from tests.support.hostile_platforms import ChangingPlatform, DebugPlatform
from tests.support.open_server import OpenServer, open_server
from tests.support.plan_tree import measurement_of
from tests.support.running import Run
from tests.support.whole_run import Scene, sources, task

from cloister.errors import CloisterError, RefusedByPeer, VerificationError
from cloister.ratls.node import Node

Two = tuple[Federation, Federation]
Make = Callable[[Federation, Federation], Node]
ONE_BYTE_MORE = b"# the task of the tests\n\n"


@pytest.fixture
def two(federation: Federation, other_federation: Federation) -> Two:
    return federation, other_federation


async def try_to_work(port: OpenServer, node: Node) -> CloisterError:
    """Runs a worker that must be refused, or refuse; returns why."""
    scene = Scene(
        directory=port.directory,
        enrolment=port.enrolment,
        training=port.training,
        patience_seconds=5,
    )
    with pytest.raises(VerificationError) as caught:
        await scene.work(node, task(), sources()[node.party])
    [failed] = scene.events(node.party, "failed")
    assert failed["code"] == caught.value.code
    assert failed["exit_code"] == 3
    return caught.value


def other_code(federation: Federation, _: Federation) -> Node:
    other = measurement_of("worker", task_source=ONE_BYTE_MORE)
    return federation.node("alice", measurement=other)


def debug(federation: Federation, _: Federation) -> Node:
    platform = DebugPlatform(federation.platform("alice"))
    return replace(federation.node("alice"), platform=platform)


def other_root(federation: Federation, other: Federation) -> Node:
    return replace(federation.node("alice"), platform=other.platform("alice"))


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
            error = await try_to_work(port, make(*two))
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
    return replace(federation.node("aggregator"), platform=platform)


def server_of_other_root(federation: Federation, other: Federation) -> Node:
    platform = other.platform("aggregator")
    return replace(federation.node("aggregator"), platform=platform)


def server_that_changed(federation: Federation, _: Federation) -> Node:
    """Its certificate's quote is good; what it runs by now is something else."""
    other = measurement_of("server", task_source=ONE_BYTE_MORE)
    platform = ChangingPlatform(
        federation.platform("aggregator"),
        later=federation.platform("aggregator", measurement=other),
    )
    return replace(federation.node("aggregator"), platform=platform)


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
            error = await try_to_work(port, alice)
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
            scene = Scene(
                directory=tmp_path, enrolment=port.enrolment, training=port.training
            )
            working = asyncio.ensure_future(scene.work(bob, task(), sources()["bob"]))
            error = await try_to_work(port, other_code(*two))
            assert error.code == "appraisal-measurement"
            good = asyncio.ensure_future(
                scene.work(two[0].node("alice"), task(), sources()["alice"])
            )
            metrics = await port.coordinator.run(patience_seconds=10)
            await asyncio.gather(working, good)
            assert metrics["accuracy"] > 0.9
            assert sorted(port.admitted()) == [("alice", 1), ("bob", 1)]

    run(story())
