"""Somebody on the way cuts connections: for as long as he does it, and no longer.

He can keep nodes apart as long as he likes. But a node that he cut off once goes on.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.addresses import free_addresses
from tests.support.federation_in_memory import Federation
from tests.support.plan_tree import WORKERS
from tests.support.relay import relay
from tests.support.running import Run, until
from tests.support.whole_run import Scene, make_scene, sources, task

from cloister.errors import ProtocolError


def is_listening(scene: Scene) -> bool:
    log = scene.directory / "logs" / "aggregator.jsonl"
    return log.exists() and scene.events("aggregator", "listening") != []


def test_a_worker_that_is_cut_off_in_its_enrolment_enrols_again(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    """The certificate comes through; the call after it does not, twice."""

    async def story() -> None:
        scene = make_scene(tmp_path / "run", federation)
        [nobody] = free_addresses(1)
        async with relay(
            lambda number: nobody if number in {1, 3} else scene.enrolment
        ) as between:
            diverted = replace(scene, enrolment=between.address)
            data, node = sources(), scene.node
            serving = asyncio.ensure_future(scene.serve(node("aggregator"), task()))
            await until(lambda: is_listening(scene))
            await asyncio.gather(
                serving,
                diverted.work(node("alice"), task(), data["alice"]),
                scene.work(node("bob"), task(), data["bob"]),
            )
        [waited] = scene.events("alice", "waiting-for-server")
        assert waited["code"] == "enrolment-broken"
        assert scene.events("bob", "waiting-for-server") == []
        for party in WORKERS:
            assert scene.events(party, "finished") != []
            assert scene.events(party, "failed") == []
        admitted = scene.events("aggregator", "peer-admitted")
        assert sorted(str(it["peer"]) for it in admitted) == sorted(WORKERS)
        assert scene.events("aggregator", "peer-refused") == []
        assert scene.model_path.exists()

    run(story())


def test_a_worker_that_is_always_cut_off_gives_up_and_has_said_nothing(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        scene = make_scene(tmp_path / "run", federation, patience_seconds=0.5)
        [nobody] = free_addresses(1)
        async with relay(
            lambda number: nobody if number % 2 else scene.enrolment
        ) as between:
            diverted = replace(scene, enrolment=between.address)
            serving = asyncio.ensure_future(
                scene.serve(scene.node("aggregator"), task())
            )
            with pytest.raises(ProtocolError) as caught:
                await diverted.work(scene.node("alice"), task(), sources()["alice"])
            assert caught.value.code in {"enrolment-broken", "server-unreachable"}
            # And the server waits for its workers no longer than it should.
            with pytest.raises(ProtocolError):
                await serving
        assert scene.events("aggregator", "peer-admitted") == []
        assert not scene.model_path.exists()
        with scene.custodians.register("alice") as register:
            assert [it.epoch for it in register.warrants()] == [1]

    run(story())
